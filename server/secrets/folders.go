// SPDX-License-Identifier: Apache-2.0

// Package secrets manages, on one server, the files that all servers share and that no other machine may read: the CAs'
// keys, the tokens and the encryption keys. The store decides which tokens and encryption keys are valid.
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
	"github.com/coracle-k8s/coracle/internal/certend"
	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/server/encryption"
	"github.com/coracle-k8s/coracle/server/pki"
)

// firstRoot is only shared after a renewal of server-ca: earlier versions refuse it.
var firstRoot = filepath.Join("tls", pki.FirstRootFile)

// CommonFiles returns the files that all servers share, by their path below the server's folder. Optional files may be
// missing.
func CommonFiles() (required, optional []string) {
	for _, s := range pki.Signers() {
		required = append(required, filepath.Join("tls", string(s)+".crt"), filepath.Join("tls", string(s)+".key"))
	}
	required = append(required, filepath.Join("tls", pki.ServiceAccountKey), token.ServerFile, token.AgentFile)
	optional = append(optional, firstRoot)
	for _, name := range encryption.Files() {
		optional = append(optional, filepath.Join("cred", name))
	}
	return required, optional
}

// Folders are a server's folders with those files.
type Folders struct{ Server, TLS, Cred string }

// Path returns the path of a shared file on this server.
func (f Folders) Path(name string) string {
	switch filepath.Dir(name) {
	case "tls":
		return filepath.Join(f.TLS, filepath.Base(name))
	case "cred":
		return filepath.Join(f.Cred, filepath.Base(name))
	}
	return filepath.Join(f.Server, name)
}

// Read reads the shared files.
func (f Folders) Read() (map[string][]byte, error) {
	out := map[string][]byte{}
	required, optional := CommonFiles()
	renewed, err := pki.RootRenewed(f.TLS)
	if err != nil {
		return nil, fmt.Errorf("reading the cluster's keys: %w", err)
	}
	for _, name := range slices.Concat(required, optional) {
		if name == firstRoot && !renewed {
			continue
		}
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

// AsideSuffix follows the name of a file that was replaced by the cluster's.
const AsideSuffix = ".before-joining"

// isReplaced says whether a cluster replaces a file at times: tokens and encryption keys, but not CAs.
func isReplaced(name string) bool { return filepath.Dir(name) != "tls" }

// inOrder returns the names of files in the order in which they are written. CAs come first: with all of them a folder
// belongs to the cluster, even if writing the rest is interrupted.
func inOrder(files map[string][]byte) []string {
	return slices.SortedFunc(maps.Keys(files), func(a, b string) int {
		switch {
		case isReplaced(a) && !isReplaced(b):
			return 1
		case isReplaced(b) && !isReplaced(a):
			return -1
		}
		return strings.Compare(a, b)
	})
}

// Write writes the cluster's files. A CA with another key in the folder is an error: it belongs to another cluster. If
// all CAs are the cluster's, different tokens and encryption keys are from an earlier attempt and were replaced since.
// Copies of them are kept, with aside after their names, unless aside is empty.
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
			return fmt.Errorf("the server's response has an unknown file: %q", name)
		}
		have, err := os.ReadFile(f.Path(name))
		if errors.Is(err, fs.ErrNotExist) && slices.Contains(required, name) && !isReplaced(name) {
			ours = false
		}
		if err == nil && string(have) != string(files[name]) {
			if differ = append(differ, name); ours && isReplaced(name) || certend.IsRenewal(have, files[name]) {
				continue
			}
			return fmt.Errorf("%s is there and is not the cluster's. Nothing was replaced: if this machine was a server of another "+
				"cluster, remove that one first "+
				"(coracle-uninstall), or give another --data-dir", f.Path(name))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("checking for files of an earlier cluster: %w", err)
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

// setAside copies a file to the same name with a suffix.
func setAside(path, suffix string) error {
	if suffix == "" {
		return nil
	}
	data, err := os.ReadFile(path)
	if err == nil {
		err = atomicfile.Write(path+suffix, data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("keeping the files that the cluster's replace: %w", err)
	}
	return nil
}
