// SPDX-License-Identifier: Apache-2.0

// This file knows the files with which a node's parts take part in the cluster: a node gets the same ones,
// under the same names, from the server in its own process or from joining one elsewhere.
//
// It owns their names, and writes those that hold nothing secret of their own: the authorities' certificates, and the
// kubeconfigs, which name the others. It never issues a certificate and holds no key.

package nodecreds

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

// Files are a node's credentials. Each is replaced by one rename when it is renewed, and read again by who uses it, so
// that no reader sees half of anything and nothing restarts.
type Files struct {
	Dir string
	// KubeletKubeconfig is the node's own identity, NetworkKubeconfig the read-only one of pod network, proxy and DNS.
	KubeletKubeconfig, NetworkKubeconfig string
	// KubeletPair and NetworkPair hold the certificate and the key that the kubeconfigs name.
	KubeletPair, NetworkPair string
	// KubeletServing holds certificate and key of the kubelet's port: one file to be named as both.
	KubeletServing string
	// ServerCAFile verifies the API server, ClientCAFile the kubelet's callers.
	ServerCAFile, ClientCAFile string
}

// In names the files of a folder.
func In(dir string) Files {
	file := func(name string) string { return filepath.Join(dir, name) }
	return Files{
		Dir:               dir,
		KubeletKubeconfig: file("kubelet.kubeconfig"),
		NetworkKubeconfig: file("network.kubeconfig"),
		KubeletPair:       file("client-kubelet.pem"),
		NetworkPair:       file("client-network.pem"),
		KubeletServing:    file("serving-kubelet.pem"),
		ServerCAFile:      file("server-ca.crt"),
		ClientCAFile:      file("client-ca.crt"),
	}
}

// Cluster is what a node has to know of its cluster to talk to it.
type Cluster struct {
	// URL is where the node reaches the API server.
	URL string
	// ServerName is what the API server's certificate has to be for; empty for the host in URL.
	ServerName string
	// ServerCA and ClientCA are PEM.
	ServerCA, ClientCA []byte
}

// Publish writes the authorities' certificates and the kubeconfigs. The pairs that these name may come before or after.
func (f Files) Publish(c Cluster) error {
	if f.Dir == "" {
		return errors.New("credentials: no folder given")
	}
	if err := os.MkdirAll(f.Dir, 0o700); err != nil {
		return fmt.Errorf("making the folder for the node's credentials: %w", err)
	}
	for path, pem := range map[string][]byte{f.ServerCAFile: c.ServerCA, f.ClientCAFile: c.ClientCA} {
		if _, err := atomicfile.WriteIfDifferent(path, pem, 0o600); err != nil {
			return err
		}
	}
	for path, pair := range map[string]string{f.KubeletKubeconfig: f.KubeletPair, f.NetworkKubeconfig: f.NetworkPair} {
		k := ByFile{Server: c.URL, ServerName: c.ServerName, CAFile: f.ServerCAFile, PairFile: pair, Path: path}
		if err := k.Write(); err != nil {
			return err
		}
	}
	return nil
}
