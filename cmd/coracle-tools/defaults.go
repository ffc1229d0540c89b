// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"k8s.io/client-go/tools/clientcmd"
)

// Where a server with default settings puts things. Both move with the server's own environment variables.
const (
	adminKubeconfig = "/etc/coracle/coracle.yaml"
	defaultDataDir  = "/var/lib/coracle"
	defaultRunDir   = "/run/coracle"
)

// runDir is where the server keeps its sockets: below the data directory when that is not the default one.
func runDir() string {
	if dir := os.Getenv("CORACLE_DATA_DIR"); dir != "" && filepath.Clean(dir) != defaultDataDir {
		return filepath.Join(dir, "run")
	}
	return defaultRunDir
}

// defaultKubeconfig makes kubectl use coracle's admin kubeconfig when the user named none and may read it. It returns
// what to add to an error message when there is a reason why that did not happen.
func defaultKubeconfig(args []string) (hint string) {
	if os.Getenv(clientcmd.RecommendedConfigPathEnvVar) != "" || namesKubeconfig(args) {
		return ""
	}
	path := adminKubeconfig
	if p := os.Getenv("CORACLE_WRITE_KUBECONFIG"); p != "" {
		path = p
	}
	f, err := os.Open(path)
	if err == nil {
		f.Close()
		os.Setenv(clientcmd.RecommendedConfigPathEnvVar, path)
		return ""
	}
	if _, statErr := os.Stat(clientcmd.RecommendedHomeFile); statErr == nil {
		return "" // the user's own file serves
	}
	return kubeconfigHint(path, err)
}

func kubeconfigHint(path string, err error) string {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Sprintf(`
%[1]s exists, but this user may not read it (it gives full rights on the cluster). Do one of:
  sudo kubectl ...
  sudo cat %[1]s > ~/.kube/config && chmod 600 ~/.kube/config
  start the server with --write-kubeconfig-mode=0644, which gives every local user full rights
`, path)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Sprintf(`
There is neither KUBECONFIG nor %s nor ~/.kube/config. A coracle server writes %[1]s when it
starts; "coracle status" says whether one runs. To reach another cluster, set KUBECONFIG.
`, path)
	default:
		return fmt.Sprintf("\ncannot read %s: %v\n", path, err)
	}
}

// namesKubeconfig tells whether the arguments before a "--" say which kubeconfig or which server to use.
func namesKubeconfig(args []string) bool {
	for _, arg := range args {
		if arg == "--" {
			return false
		}
		name, _, _ := strings.Cut(arg, "=")
		if name == "--kubeconfig" || name == "--server" || name == "-s" {
			return true
		}
	}
	return false
}
