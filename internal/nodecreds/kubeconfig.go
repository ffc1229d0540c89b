// SPDX-License-Identifier: Apache-2.0

// This file writes kubeconfig files. The administrator's embeds all data. Those for the node's components name files
// instead, so that a renewed certificate is used without rewriting the kubeconfig or restarting the component. The code
// never issues a certificate.

package nodecreds

import (
	"cmp"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

// entryName is the name of cluster, user and context. k3s uses it too, and users merge these files by hand.
const entryName = "default"

// Embedded describes a kubeconfig that embeds all data.
type Embedded struct {
	Server        string // https://host:port
	ServerName    string // name for which the server's certificate has to be valid; empty for the host in Server
	CA, Cert, Key []byte // PEM
	Path          string
	Mode          fs.FileMode // zero means 0600
	GID           int         // group of the file; 0 or less leaves it unchanged
}

// Write writes the file, unless it has the same content already. It makes the folder if that is missing.
func (e Embedded) Write() error {
	err := write(e.Path, e.Mode, build(e.Server,
		api.Cluster{CertificateAuthorityData: e.CA, TLSServerName: e.ServerName},
		api.AuthInfo{ClientCertificateData: e.Cert, ClientKeyData: e.Key}))
	if err != nil || e.GID <= 0 {
		return err
	}
	if err := os.Chown(e.Path, -1, e.GID); err != nil {
		return fmt.Errorf("giving the kubeconfig to its group: %w", err)
	}
	return nil
}

// ByFile describes a kubeconfig that names the file of the CA and the file with certificate and key.
type ByFile struct {
	Server     string // https://host:port
	ServerName string // name for which the server's certificate has to be valid; empty for the host in Server
	CAFile     string
	// PairFile is the file with certificate and key (see pki.Leaf).
	PairFile string
	Path     string
}

// Write writes the file with mode 0600, unless it has the same content already.
func (b ByFile) Write() error {
	return write(b.Path, 0, build(b.Server,
		api.Cluster{CertificateAuthority: b.CAFile, TLSServerName: b.ServerName},
		api.AuthInfo{ClientCertificate: b.PairFile, ClientKey: b.PairFile}))
}

func build(server string, cluster api.Cluster, user api.AuthInfo) *api.Config {
	c := api.NewConfig()
	cluster.Server = server
	c.Clusters[entryName] = &cluster
	c.AuthInfos[entryName] = &user
	c.Contexts[entryName] = &api.Context{Cluster: entryName, AuthInfo: entryName}
	c.CurrentContext = entryName
	return c
}

func write(path string, mode fs.FileMode, c *api.Config) error {
	mode = cmp.Or(mode, 0o600)
	data, err := clientcmd.Write(*c)
	if err != nil {
		return fmt.Errorf("encoding the kubeconfig %s: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("making the folder for the kubeconfig: %w", err)
	}
	_, err = atomicfile.WriteIfDifferent(path, data, mode)
	return err
}
