// SPDX-License-Identifier: Apache-2.0

package config

import (
	"path/filepath"
)

// Paths is where everything lies. All are absolute. Nothing here exists yet: who uses a folder makes it.
type Paths struct {
	DataDir string
	RunDir  string

	// Below DataDir/server.
	ServerDir       string
	TLSDir          string // certificates and keys
	CredDir         string // kubeconfigs and other credentials
	TokenFile       string
	AgentTokenFile  string
	StoreDir        string
	AdminKubeconfig string // copy of the administrator's kubeconfig that no flag moves

	// Below DataDir/agent.
	AgentDir       string
	ContainerdRoot string

	// Where everybody expects them (CSI drivers and log collectors mount them by name) as long as DataDir is the
	// default.
	KubeletRoot string
	PodLogs     string

	// Directly below DataDir.
	ManifestsDir string
	// ChartFolders are where charts lie that a HelmChart names by file; coracle does not make them.
	ChartFolders []string
	ImagesDir    string
	BinDir       string
	StorageDir   string // for local volumes, unless a flag says otherwise

	// Below RunDir.
	ContainerdState  string
	ContainerdSocket string
	StoreSocket      string // the etcd API
	CNISocket        string
	AdminSocket      string // what coracle status asks
	PIDFile          string
}

// NewPaths lays out both folders. An empty run folder means the default that goes with the data folder.
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

// maxSocketPath is what fits into the kernel's sockaddr_un with its closing zero (unix(7)).
const maxSocketPath = 107

// longestSocket is the longest socket name that some part makes below RunDir.
func (p Paths) longestSocket() string { return p.ContainerdSocket + ".ttrpc" }
