// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/cni/wire"
	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

// conflistName sorts before other programs' files in the folder: containerd uses the first.
const conflistName = "10-coracle.conflist"

// pluginConf is the runtime's input on the plugin's standard input: our entry of the configuration list, with the
// runtime's additions (CNI specification, section 4).
type pluginConf struct {
	CNIVersion    string `json:"cniVersion"`
	RuntimeConfig struct {
		PortMappings []struct {
			HostPort      int    `json:"hostPort"`
			ContainerPort int    `json:"containerPort"`
			Protocol      string `json:"protocol"`
			HostIP        string `json:"hostIP"`
		} `json:"portMappings"`
		Bandwidth *askedBandwidth `json:"bandwidth"`
	} `json:"runtimeConfig"`
	ValidAttachments []struct {
		ContainerID string `json:"containerID"`
		IfName      string `json:"ifname"`
	} `json:"cni.dev/valid-attachments"`
}

func parseConf(data []byte) (pluginConf, error) {
	var c pluginConf
	if err := json.Unmarshal(data, &c); err != nil {
		return c, wire.Errorf(wire.CodeDecode, "decoding the network configuration: %v", err)
	}
	if !wire.SupportsVersion(c.CNIVersion) {
		return c, wire.Errorf(wire.CodeIncompatibleVersion, "cniVersion %q is not one of %v", c.CNIVersion, wire.Versions)
	}
	return c, nil
}

// maxHostPorts limits the host ports of a pod: one that took all free ports would receive the packets for programs
// that start later.
const maxHostPorts = 256

// ports returns the wanted host ports. Runtimes also send container ports without a host port.
func (c pluginConf) ports() ([]PortMapping, error) {
	var out []PortMapping
	for _, m := range c.RuntimeConfig.PortMappings {
		if m.HostPort == 0 {
			continue
		}
		if m.HostPort < 0 || m.HostPort > 65535 || m.ContainerPort <= 0 || m.ContainerPort > 65535 {
			return nil, wire.Errorf(wire.CodeInvalidConfig, "port mapping %d to %d is out of range", m.HostPort, m.ContainerPort)
		}
		proto := strings.ToLower(m.Protocol)
		switch proto {
		case "":
			proto = "tcp"
		case "tcp", "udp", "sctp":
		default:
			return nil, wire.Errorf(wire.CodeInvalidConfig, "port mapping with unknown protocol %q", m.Protocol)
		}
		if _, _, err := hostIP(m.HostIP); err != nil {
			return nil, wire.Errorf(wire.CodeInvalidConfig, "port mapping: %v", err)
		}
		out = append(out, PortMapping{uint16(m.HostPort), uint16(m.ContainerPort), proto, m.HostIP})
	}
	if len(out) > maxHostPorts {
		return nil, wire.Errorf(wire.CodeInvalidConfig,
			"the pod has %d host ports, and a pod may have %d: give it fewer, or the host's network", len(out), maxHostPorts)
	}
	return out, nil
}

// parseArgs reads CNI_ARGS: KEY=VALUE pairs separated by semicolons.
func parseArgs(args string) map[string]string {
	out := map[string]string{}
	for _, pair := range strings.Split(args, ";") {
		if k, v, ok := strings.Cut(pair, "="); ok {
			out[k] = v
		}
	}
	return out
}

// conflist returns the configuration list that containerd reads.
func conflist(socket string) ([]byte, error) {
	type object = map[string]any
	out, err := json.MarshalIndent(object{
		"cniVersion": wire.Versions[0],
		"name":       NetworkName,
		"plugins": []object{{
			"type":         PluginName,
			"socket":       socket,
			"capabilities": object{"portMappings": true, "bandwidth": true},
		}},
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encoding the CNI configuration: %w", err)
	}
	return append(out, '\n'), nil
}

// writeConflist writes the configuration list, which makes the node network-ready.
func (pn *podNetwork) writeConflist() error {
	data, err := conflist(pn.o.Socket)
	if err != nil {
		return err
	}
	path := filepath.Join(pn.o.ConfDir, conflistName)
	if old, err := os.ReadFile(path); err == nil && string(old) == string(data) {
		return os.Chmod(path, 0o600) // no write: containerd watches the folder. Earlier versions made the file 0644
	}
	if err := os.MkdirAll(pn.o.ConfDir, 0o755); err != nil {
		return fmt.Errorf("making the CNI configuration folder: %w", err)
	}
	// The file is made in another folder and moved: containerd would try to load an incomplete file, and complain.
	made := filepath.Join(pn.o.StateDir, conflistName)
	err = atomicfile.Write(made, data, 0o600)
	if err == nil {
		err = os.Rename(made, path)
	}
	if errors.Is(err, unix.EXDEV) { // two file systems
		err = errors.Join(atomicfile.Write(path, data, 0o600), os.Remove(made))
	}
	if err == nil {
		err = rewriteFile(path, data)
	}
	if err != nil {
		return fmt.Errorf("writing the CNI configuration: %w", err)
	}
	return nil
}

// removeConflist removes the configuration list. The node is not network-ready then.
func removeConflist(dir string) error {
	if err := os.Remove(filepath.Join(dir, conflistName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the CNI configuration: %w", err)
	}
	return nil
}

// rewriteFile writes a file's own content over itself. containerd loads the configuration after a write. It ignores a
// file's creation, which it takes for the beginning of a write (cni_conf_syncer.go).
func rewriteFile(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}
