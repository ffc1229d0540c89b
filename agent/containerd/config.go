// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"path/filepath"

	srvconfig "github.com/containerd/containerd/v2/cmd/containerd/server/config"
	"github.com/containerd/containerd/v2/version"
	"github.com/containerd/platforms"

	"github.com/coracle-k8s/coracle/agent/runtimes"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

const (
	shimName = "containerd-shim-runc-v2"

	// maxSocketDir is the longest folder containerd accepts for its shims' sockets: 107 bytes of a unix address less a
	// slash and a SHA-256 in hexadecimal.
	maxSocketDir = 42
)

// serverConfig returns containerd's configuration. It depends only on the options and the host's capabilities.
func serverConfig(o Options, snapshotter string, h host) *srvconfig.Config {
	return &srvconfig.Config{
		Version:         version.ConfigVersion,
		Root:            o.Root,
		State:           o.State,
		RequiredPlugins: []string{"io.containerd.grpc.v1.cri"},
		DisabledPlugins: []string{
			// Both would count every call into a registry that is not scraped. The first panics when its metrics exist
			// already.
			"io.containerd.metrics.v1.grpc-prometheus",
			"io.containerd.metrics.v1.grpc-otel",
			"io.containerd.server.v1.grpc-tcp",
		},
		Plugins: map[string]any{
			"io.containerd.server.v1.grpc":          map[string]any{"address": o.Address()},
			"io.containerd.server.v1.ttrpc":         map[string]any{"address": o.Address() + ".ttrpc"},
			"io.containerd.shim.v1.manager":         map[string]any{"socket_dir": shimSocketDir(o.State)},
			"io.containerd.grpc.v1.cri":             map[string]any{"stream_server_address": clusterconfig.Loopback.String()},
			"io.containerd.cri.v1.images":           imagesConfig(o, snapshotter),
			"io.containerd.cri.v1.runtime":          runtimeConfig(o, h),
			"io.containerd.transfer.v1.local":       transferConfig(o, snapshotter),
			"io.containerd.service.v1.diff-service": map[string]any{"default": []string{syncedDiffer}},
		},
	}
}

func imagesConfig(o Options, snapshotter string) map[string]any {
	return map[string]any{
		"snapshotter":   snapshotter,
		"pinned_images": map[string]any{"sandbox": o.PauseImage},
		"registry":      registryConfig(o),
		// The transfer service does not know the registries' credentials. With this setting containerd does not warn
		// about it.
		"use_local_image_pull": len(o.RegistryAuths) > 0,
	}
}

// registryConfig names the folder of hosts.toml files. Those cannot hold credentials. The older key beside them can,
// and makes containerd pull with its client library where it would use the transfer service.
func registryConfig(o Options) map[string]any {
	c := map[string]any{"config_path": o.RegistryDir}
	if len(o.RegistryAuths) > 0 {
		hosts := map[string]any{}
		for host, a := range o.RegistryAuths {
			hosts[host] = map[string]any{"auth": map[string]any{
				"username": a.Username, "password": a.Password, "auth": a.Auth, "identitytoken": a.IdentityToken,
			}}
		}
		c["configs"] = hosts
	}
	return c
}

// transferConfig repeats the image service's settings: pulls go through the transfer service, which has separate
// settings.
func transferConfig(o Options, snapshotter string) map[string]any {
	return map[string]any{
		"config_path": o.RegistryDir,
		"unpack_config": []map[string]any{{
			"platform": platforms.Format(platforms.DefaultSpec()), "snapshotter": snapshotter, "differ": syncedDiffer,
		}},
	}
}

func runtimeConfig(o Options, h host) map[string]any {
	return map[string]any{
		"cni": map[string]any{
			"bin_dirs": []string{o.CNIBinDir}, "conf_dir": o.CNIConfDir,
			"use_internal_loopback": true, // else a loopback plugin would be executed for every pod
		},
		"device_ownership_from_security_context": o.NonrootDevices,
		"containerd": map[string]any{
			"default_runtime_name": cmp.Or(o.DefaultRuntime, clusterconfig.DefaultRuntime),
			"runtimes":             handlers(o),
		},
		// Network namespaces stay where the rest of the state is: removing the state directory removes them, and a
		// containerd of the host does not meet them in /run/netns.
		"netns_mounts_under_state_dir": true,
		"restrict_oom_score_adj":       !h.canLowerOOMScore,
		"disable_apparmor":             h.noAppArmor,
		// stats_collect_period is how often every shim is asked for CPU numbers that only crictl stats shows (the
		// kubelet reads cgroups itself). Upstream: 1s.
		"stats_collect_period":   "60s",
		"stats_retention_period": "3m",
	}
}

// handlers returns the configuration of each runtime by its name.
func handlers(o Options) map[string]any {
	embedded := runtimes.Runtime{Name: clusterconfig.DefaultRuntime, Program: filepath.Join(o.BinDir, "runc")}
	all := map[string]any{}
	for _, r := range append([]runtimes.Runtime{embedded}, o.Runtimes...) {
		handler := map[string]any{"runtime_type": r.Type(), "runtime_path": r.Program, "sandboxer": "podsandbox"}
		if !r.OwnShim {
			handler["runtime_path"] = filepath.Join(o.BinDir, shimName)
			handler["options"] = map[string]any{
				"BinaryName": r.Program,
				"Root":       filepath.Join(o.State, r.Name),
				// cgroupfs on every host: one code path under systemd, OpenRC or nothing, and no D-Bus call per
				// container.
				"SystemdCgroup": false,
			}
		}
		all[r.Name] = handler
	}
	return all
}

// shimSocketDir returns the folder of shims' sockets. It is in the state directory, unless their names would be too
// long for a unix address. Then it is a short name derived from the directory, the same in every run.
func shimSocketDir(state string) string {
	dir := filepath.Join(state, "s")
	if len(dir) <= maxSocketDir {
		return dir
	}
	sum := sha256.Sum256([]byte(state))
	return filepath.Join("/run/coracle-shims", hex.EncodeToString(sum[:6]))
}
