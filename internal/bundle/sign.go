// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"aead.dev/minisign"
	"golang.org/x/sys/unix"
)

// Sign adds the signature of a key to the bundle at path, and returns the key's number. All blobs are read and checked.
// The file is replaced by a new one when that is whole and on disk.
func Sign(ctx context.Context, path string, key minisign.PrivateKey) (id string, err error) {
	b, done, err := OpenFile(path)
	if err != nil {
		return "", err
	}
	defer done()
	c := &b.Index.Contents
	// No time stands in it: the same key and index always make the same signature.
	trusted := fmt.Sprintf("bundle %s, counter %d", c.Name, c.Counter)
	message := minisign.NewReader(bytes.NewReader(b.raw))
	if _, err := io.Copy(io.Discard, message); err != nil {
		return "", err
	}
	s := signature{text: message.SignWithComments(key, trusted, "signature of a bundle of coracle")}
	if err := s.UnmarshalText(s.text); err != nil {
		return "", err
	}
	signatures := slices.DeleteFunc(slices.Clone(b.signatures), func(other signature) bool { return other.KeyID == s.KeyID })
	if signatures = append(signatures, s); len(signatures) > maxSignatures {
		return "", fmt.Errorf("it has %d signatures already, which is the most", maxSignatures)
	}
	slices.SortFunc(signatures, func(a, b signature) int { return cmp.Compare(a.KeyID, b.KeyID) })
	return keyID(s.KeyID), writeTo(ctx, path, b.raw, signatures, c.Blobs, func(blob Blob) (io.ReadCloser, error) {
		r, err := b.Blob(blob.Digest)
		return io.NopCloser(r), err
	})
}

// OpenFile opens the bundle at path. The function done closes it.
func OpenFile(path string) (b *Bundle, done func(), err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a named pipe would block
	if err != nil {
		return nil, nil, fmt.Errorf("reading the bundle: %w", err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it is no bundle: it is no regular file")
	}
	if err == nil {
		b, err = Open(f, info.Size())
	}
	if err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	return b, func() { f.Close() }, nil
}

// ReadPrivateKey reads a private key of minisign. The function password is called if the key is encrypted.
func ReadPrivateKey(file string, password func() (string, error)) (key minisign.PrivateKey, err error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return key, fmt.Errorf("reading the key: %w", err)
	}
	if !minisign.IsEncrypted(data) {
		if err := key.UnmarshalText(data); err != nil {
			return key, fmt.Errorf("%s is no private key of minisign: %w", file, err)
		}
		return key, nil
	}
	text, err := password()
	if err != nil {
		return key, fmt.Errorf("reading the password of the key: %w", err)
	}
	if key, err = minisign.DecryptKey(text, data); err != nil {
		return key, fmt.Errorf("%s cannot be decrypted: the password is wrong, or the file is damaged", file)
	}
	return key, nil
}
