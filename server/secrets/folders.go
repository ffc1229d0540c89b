// SPDX-License-Identifier: Apache-2.0

// Package secrets keeps on one server what all servers have in common and no one else may read: the files with the
// authorities' keys, the tokens and the encryption keys. The store says which tokens and encryption keys count.
package secrets

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/server/encryption"
	"github.com/coracle-k8s/coracle/server/pki"
)

// CommonFiles are the files that all servers have in common, by their path below the server's folder. Those of the
// second kind may be missing.
func CommonFiles() (required, optional []string) {
	for _, s := range []pki.Signer{pki.ServerCA, pki.ClientCA, pki.RequestHeaderCA, pki.PeerCA, pki.KubeletCA} {
		required = append(required, filepath.Join("tls", string(s)+".crt"), filepath.Join("tls", string(s)+".key"))
	}
	required = append(required, filepath.Join("tls", pki.ServiceAccountKey), token.ServerFile, token.AgentFile)
	for _, name := range encryption.Files() {
		optional = append(optional, filepath.Join("cred", name))
	}
	return required, optional
}

// Folders are where a server has those files.
type Folders struct{ Server, TLS, Cred string }

// Path is where one of those files is on this server.
func (f Folders) Path(name string) string {
	switch filepath.Dir(name) {
	case "tls":
		return filepath.Join(f.TLS, filepath.Base(name))
	case "cred":
		return filepath.Join(f.Cred, filepath.Base(name))
	}
	return filepath.Join(f.Server, name)
}

// Read reads those files.
func (f Folders) Read() (map[string][]byte, error) {
	out := map[string][]byte{}
	required, optional := CommonFiles()
	for _, name := range slices.Concat(required, optional) {
		data, err := os.ReadFile(f.Path(name))
		if errors.Is(err, fs.ErrNotExist) && slices.Contains(optional, name) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading the cluster's keys: %w", err)
		}
		out[name] = data
	}
	return out, nil
}

// AsideSuffix is behind the name of a file that was replaced by the cluster's.
const AsideSuffix = ".before-joining"

// replaced says whether a cluster replaces a file at times: tokens and encryption keys, and no authority.
func replaced(name string) bool { return filepath.Dir(name) != "tls" }

// inOrder are the names of files as they are written. Authorities come first: with all of them a folder is the
// cluster's, wherever the rest is interrupted.
func inOrder(files map[string][]byte) []string {
	return slices.SortedFunc(maps.Keys(files), func(a, b string) int {
		switch {
		case replaced(a) && !replaced(b):
			return 1
		case replaced(b) && !replaced(a):
			return -1
		}
		return strings.Compare(a, b)
	})
}

// Write writes the cluster's files. An authority that is there already and is another one is of another cluster.
// Where all of them are the cluster's, tokens and encryption keys that differ are those of an earlier try, and were
// replaced since; they are kept with aside behind their name, if that is not empty.
func (f Folders) Write(files map[string][]byte, aside string) error {
	required, optional := CommonFiles()
	for _, name := range required {
		if len(files[name]) == 0 {
			return fmt.Errorf("the server's answer lacks %s", name)
		}
	}
	names, ours := inOrder(files), true
	var differ []string
	for _, name := range names {
		if !slices.Contains(required, name) && !slices.Contains(optional, name) {
			return fmt.Errorf("the server's answer has a file that no server keeps: %q", name)
		}
		have, err := os.ReadFile(f.Path(name))
		if errors.Is(err, fs.ErrNotExist) && !replaced(name) {
			ours = false
		}
		if err == nil && string(have) != string(files[name]) {
			if differ = append(differ, name); ours && replaced(name) {
				continue
			}
			return fmt.Errorf("%s is there and is not the cluster's. Nothing was replaced: if this machine was a server of another "+
				"cluster, remove that one first "+
				"(coracle-uninstall), or give another --data-dir", f.Path(name))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("looking for the files of an earlier cluster: %w", err)
		}
	}
	for _, name := range differ {
		if err := setAside(f.Path(name), aside); err != nil {
			return err
		}
	}
	for _, name := range names {
		path := f.Path(name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return fmt.Errorf("making the folder for the cluster's keys: %w", err)
		}
		if _, err := atomicfile.WriteIfDifferent(path, files[name], 0o600); err != nil {
			return err
		}
	}
	return nil
}

// setAside keeps a copy of a file under a longer name.
func setAside(path, suffix string) error {
	if suffix == "" {
		return nil
	}
	data, err := os.ReadFile(path)
	if err == nil {
		err = atomicfile.Write(path+suffix, data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("keeping what is replaced by the cluster's: %w", err)
	}
	return nil
}
