// SPDX-License-Identifier: Apache-2.0

// This file defines the files with a node's credentials. A node gets the same files, under the same names, from the
// server in its own process or by joining a server on another machine.
//
// It owns the files' names. It writes the files that hold no secret: the authorities' certificates, and the
// kubeconfigs, which name the other files. It never issues a certificate and holds no key.

package nodecreds

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

// Files are the paths of a node's credentials. Each file is replaced by one rename when it is renewed, and its users
// read it again. So no reader sees an incomplete file, and nothing restarts.
type Files struct {
	Dir string
	// KubeletKubeconfig has the node's own identity. NetworkKubeconfig has the read-only identity of pod network, proxy
	// and DNS.
	KubeletKubeconfig, NetworkKubeconfig string
	// KubeletPair and NetworkPair hold the certificate and the key that the kubeconfigs name.
	KubeletPair, NetworkPair string
	// KubeletServing holds the certificate and the key of the kubelet's port. The kubelet gets it as certificate file
	// and as key file.
	KubeletServing string
	// ServerCAFile verifies the API server. ClientCAFile verifies the kubelet's clients.
	ServerCAFile, ClientCAFile string
}

// In returns the paths of the files in a folder.
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

// Cluster is what a node has to know of its cluster to connect to it.
type Cluster struct {
	// URL is the URL at which the node reaches the API server.
	URL string
	// ServerName is the name for which the API server's certificate has to be valid. Empty means the host in URL.
	ServerName string
	// ServerCA and ClientCA are certificates in PEM.
	ServerCA, ClientCA []byte
}

// Publish writes the authorities' certificates and the kubeconfigs. The pairs that the kubeconfigs name may be written
// before or after.
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
