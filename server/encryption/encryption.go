// SPDX-License-Identifier: Apache-2.0

// Package encryption keeps Secrets, and what else an operator lists, encrypted in the store.
//
// It owns the API server's EncryptionConfiguration file and the state of a key rotation beside it. The provider is
// secretbox (XSalsa20 with Poly1305): authenticated, with nonces long enough to be random for ever (AES-GCM's are not,
// and its key would have to be rotated by count), and fast on boards without AES instructions. It never sees plain
// text: the API server encrypts, and re-encrypting is asking it to write an object again.
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
	keyBytes   = 32 // what secretbox takes
)

// Files names the files of Options.Dir that hold keys, or say how far their rotation is.
func Files() []string { return []string{configFile, stateFile} }

// Options says where the files are and what is to be encrypted.
type Options struct {
	// Dir is the server's folder for credentials; it is made (mode 0700) when missing.
	Dir string
	// Resources are encrypted when written: "secrets", "configmaps", "widgets.example.com", "*.apps", "*.*". One that
	// was listed once and no more is written plainly from then on and stays readable. None: encryption is off.
	Resources []string
	// Established says that this cluster has data, so that a missing key file means unreadable Secrets and not a fresh
	// start.
	Established bool
	// Logger tells of changes; nil means slog's default.
	Logger *slog.Logger
}

// Ensure makes or updates the configuration and returns its path, for the API server to load and to reload.
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
		k, err := newKey(nil)
		if err != nil {
			return "", err
		}
		l = layout{keys: []key{k}}
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

// newKey makes a key whose name is one higher than any in use or remembered.
func newKey(used []string) (key, error) {
	secret := make([]byte, keyBytes)
	if _, err := rand.Read(secret); err != nil {
		return key{}, fmt.Errorf("making an encryption key: %w", err)
	}
	return key{Name: nextName(used), Secret: base64.StdEncoding.EncodeToString(secret)}, nil
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

// write puts the layout into the file after upstream's own check. It reports whether the file changed.
func (l layout) write(ctx context.Context, path string) (bool, error) {
	data, err := l.encode()
	if err != nil {
		return false, err
	}
	// Nothing is written where nothing changes: a server has to start with a full disk too.
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, data) {
		return false, nil
	}
	if err := check(ctx, filepath.Dir(path), data); err != nil {
		return false, err
	}
	return true, atomicfile.Write(path, data, 0o600)
}

// check loads the configuration as the API server will, so that it never meets one it rejects.
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

// contentHash is how upstream names the content of a configuration it has loaded.
func contentHash(data []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(data)) }
