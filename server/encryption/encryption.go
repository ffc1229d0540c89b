// SPDX-License-Identifier: Apache-2.0

// Package encryption encrypts Secrets in the store, and other resources that an operator lists.
//
// It owns the API server's EncryptionConfiguration file and the state file of a key rotation beside it. The provider is
// secretbox (XSalsa20 with Poly1305). It is authenticated, and fast on boards without AES instructions. Its nonces are
// long enough to be random for ever. AES-GCM's are not, so that its key would have to be rotated after a number of
// writes. The package never sees plain text: the API server encrypts, and objects are re-encrypted by requests to it to
// write them again.
package encryption

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"k8s.io/apiserver/pkg/server/options/encryptionconfig"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

const (
	configFile = "encryption-config.yaml"
	stateFile  = "encryption-state.json"
	keyBytes   = 32 // secretbox's key length
)

// Files returns the names of the files in Options.Dir with keys or the state of their rotation.
func Files() []string { return []string{configFile, stateFile} }

// Options are Ensure's parameters.
type Options struct {
	// Dir is the server's folder for credentials. It is made (mode 0700) when missing.
	Dir string
	// Resources are encrypted when written: "secrets", "configmaps", "widgets.example.com", "*.apps", "*.*". A resource
	// that is not listed any more is written in plain text from then on, and its encrypted objects remain readable. An
	// empty list disables encryption.
	Resources []string
	// Established says that this cluster has data. A missing key file then means unreadable Secrets and is an error.
	Established bool
	// Logger logs changes. Nil means slog's default.
	Logger *slog.Logger
}

// Ensure makes or updates the configuration. It returns the path, for the API server to load and to reload.
func Ensure(ctx context.Context, o Options) (string, error) {
	o.Logger = cmp.Or(o.Logger, slog.Default())
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return "", fmt.Errorf("making the folder for the encryption keys: %w", err)
	}
	editing, err := lock(ctx, filepath.Join(o.Dir, editLock), true)
	if err != nil {
		return "", err
	}
	defer editing.Close()
	path := filepath.Join(o.Dir, configFile)
	l, err := readLayout(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && o.Established:
		return "", fmt.Errorf("%s is missing, although this cluster has data. Nothing was changed. It holds the key with "+
			"which Secrets are encrypted, and without it they cannot be read: restore it from a backup, then start again", path)
	case errors.Is(err, errForeign):
		o.Logger.Info("the encryption configuration was written by hand and is used as it is", "file", path)
		return path, nil
	case errors.Is(err, fs.ErrNotExist):
		l = layout{keys: []key{newKey(nil)}}
	case err != nil:
		return "", fmt.Errorf("%w. Nothing was changed. The file holds the key with which Secrets are encrypted: restore it "+
			"from a backup, then start again", err)
	}
	if err := l.setResources(o.Resources); err != nil {
		return "", err
	}
	wrote, err := l.write(ctx, path)
	if err != nil {
		return "", err
	}
	if wrote {
		o.Logger.Info("wrote the encryption configuration", "file", path, "encrypted", l.active, "key", l.keys[0].Name)
	}
	return path, nil
}

// newKey makes a key. The number in its name is one higher than any in used.
func newKey(used []string) key {
	secret := make([]byte, keyBytes)
	_, _ = rand.Read(secret) // never fails
	return key{Name: nextName(used), Secret: base64.StdEncoding.EncodeToString(secret)}
}

func nextName(used []string) string {
	highest := 0
	for _, name := range used {
		if n, err := strconv.Atoi(strings.TrimPrefix(name, "key")); err == nil && n > highest {
			highest = n
		}
	}
	return "key" + strconv.Itoa(highest+1)
}

// write writes the layout to the file after upstream's own check. It says whether the file changed.
func (l layout) write(ctx context.Context, path string) (bool, error) {
	data, err := l.encode()
	if err != nil {
		return false, err
	}
	// Nothing is written without a change: a server has to start with a full disk too.
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return false, nil
	}
	if err := check(ctx, filepath.Dir(path), data); err != nil {
		return false, err
	}
	return true, atomicfile.Write(path, data, 0o600)
}

// check loads the configuration as the API server will, to find one that it would reject.
func check(ctx context.Context, dir string, data []byte) (err error) {
	f, err := os.CreateTemp(dir, ".check*")
	if err != nil {
		return fmt.Errorf("checking the encryption configuration: %w", err)
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	if _, err := f.Write(data); err != nil {
		return errors.Join(fmt.Errorf("checking the encryption configuration: %w", err), f.Close())
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("checking the encryption configuration: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx) // ends what loading started
	defer cancel()
	if _, err := encryptionconfig.LoadEncryptionConfig(ctx, f.Name(), true, ""); err != nil {
		return fmt.Errorf("the list of resources to encrypt cannot be used: %w", err)
	}
	return nil
}

// contentHash returns upstream's name for the content of a loaded configuration.
func contentHash(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }
