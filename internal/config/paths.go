// SPDX-License-Identifier: Apache-2.0

package config

import (
	"path/filepath"
)

// Paths holds the paths of coracle's files and folders, all absolute. NewPaths creates none of them: the code that uses
// a folder makes it.
type Paths struct {
	ConfigFile string // beside it are its drop-ins; none of them need exist
	DataDir    string
	RunDir     string

	// Below DataDir/server.
	ServerDir       string
	TLSDir          string // certificates and keys
	CredDir         string // kubeconfigs and other credentials
	TokenFile       string
	AgentTokenFile  string
	StoreDir        string
	AdminKubeconfig string // a copy of the administrator's kubeconfig at a fixed path

	// Below DataDir/agent.
	AgentDir       string
	ContainerdRoot string

	// With the default DataDir these are the usual folders, because CSI drivers and log collectors mount them by path.
	KubeletRoot string
	PodLogs     string

	// Directly below DataDir.
	ManifestsDir string
	// ChartFolders are the folders with the charts that HelmCharts name by file. Coracle does not make them.
	ChartFolders []string
	ImagesDir    string
	BinDir       string
	StorageDir   string // for local volumes, unless a flag names others

	// Below RunDir.
	ContainerdState  string
	ContainerdSocket string
	StoreSocket      string // serves the etcd API
	CNISocket        string
	AdminSocket      string // serves coracle status
	PIDFile          string
}

// NewPaths returns the paths below both folders. An empty runDir means the default that belongs to dataDir.
func NewPaths(dataDir, runDir string) Paths {
	if runDir == "" {
		runDir = DefaultRunDir
		if dataDir != DefaultDataDir {
			runDir = filepath.Join(dataDir, "run")
		}
	}
	server, agent := filepath.Join(dataDir, "server"), filepath.Join(dataDir, "agent")
	kubelet, logs := "/var/lib/kubelet", "/var/log/pods"
	if filepath.Clean(dataDir) != DefaultDataDir {
		kubelet, logs = filepath.Join(agent, "kubelet"), filepath.Join(agent, "logs")
	}
	return Paths{
		DataDir: dataDir,
		RunDir:  runDir,

		ServerDir:       server,
		TLSDir:          filepath.Join(server, "tls"),
		CredDir:         filepath.Join(server, "cred"),
		TokenFile:       filepath.Join(server, "token"),
		AgentTokenFile:  filepath.Join(server, "agent-token"),
		StoreDir:        filepath.Join(server, "store"),
		AdminKubeconfig: filepath.Join(server, "cred", "admin.kubeconfig"),

		AgentDir:       agent,
		ContainerdRoot: filepath.Join(agent, "containerd"),
		KubeletRoot:    kubelet,
		PodLogs:        logs,

		ManifestsDir: filepath.Join(dataDir, "manifests"),
		ChartFolders: []string{filepath.Join(dataDir, "charts"), filepath.Join(dataDir, "static", "charts"),
			filepath.Join(server, "static", "charts")},
		ImagesDir:  filepath.Join(dataDir, "images"),
		BinDir:     filepath.Join(dataDir, "bin"),
		StorageDir: filepath.Join(dataDir, "storage"),

		ContainerdState:  filepath.Join(runDir, "containerd"),
		ContainerdSocket: filepath.Join(runDir, "containerd", "containerd.sock"),
		StoreSocket:      filepath.Join(runDir, "store.sock"),
		CNISocket:        filepath.Join(runDir, "cni.sock"),
		AdminSocket:      filepath.Join(runDir, "coracle.sock"),
		PIDFile:          filepath.Join(runDir, "coracle.pid"),
	}
}

// maxSocketPath is the longest path that fits into the kernel's sockaddr_un with its closing zero (unix(7)).
const maxSocketPath = 107

// longestSocket returns the longest path of a socket below RunDir.
func (p Paths) longestSocket() string { return p.ContainerdSocket + ".ttrpc" }
