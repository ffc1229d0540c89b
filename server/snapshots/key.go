// SPDX-License-Identifier: Apache-2.0

package snapshots

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"filippo.io/age"

	"github.com/coracle-k8s/coracle/joining/token"
)

// KeyKind says where a key is from.
type KeyKind string

// The kinds of keys.
const (
	TokenKey KeyKind = "token" // the cluster's server token
	FileKey  KeyKind = "file"  // a file that the user made, --snapshot-key-file
)

// scryptWork is the base-two logarithm of scrypt's N: 32 MiB and about a tenth of a second. Tokens that coracle makes
// have 128 random bits and do not need it. It is for tokens that a user chose. age's default of 18 would take 256 MiB,
// which the smallest boards do not have. docs/adr/0068
const scryptWork = 15

// Key encrypts and decrypts snapshots.
type Key struct {
	Kind KeyKind
	// cluster is the cluster that the token names, empty if it names none.
	cluster    string
	passphrase string
	work       int // scryptWork, except in tests
}

// KeyOfToken returns the key that is derived from the server token. text is the whole token or only its secret.
func KeyOfToken(text string) (Key, error) {
	t, err := token.Parse(text)
	if err != nil {
		return Key{}, err
	}
	if t.Role == token.RoleAgent || t.Role == token.RoleBootstrap {
		return Key{}, errors.New("this is a token for agents; a snapshot is encrypted with the server token, which `coracle token print " +
			"--server` shows")
	}
	return Key{Kind: TokenKey, cluster: t.CAHash, passphrase: t.Secret, work: scryptWork}, nil
}

// minSecret is the minimum length of a user's own key, in characters.
const minSecret = 16

// KeyOfFile returns the key in a user's file: the whole content, without white space around it.
func KeyOfFile(path string) (Key, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Key{}, fmt.Errorf("reading the key for snapshots: %w", err)
	}
	secret := strings.TrimSpace(string(data))
	if len(secret) < minSecret {
		return Key{},
			fmt.Errorf("the key for snapshots in %s has %d characters; at least %d are needed, such as `openssl rand -hex 32` prints", path,
				len(secret), minSecret)
	}
	return Key{Kind: FileKey, passphrase: secret, work: scryptWork}, nil
}

func (k Key) encrypt(w io.Writer) (io.WriteCloser, error) {
	r, err := age.NewScryptRecipient(k.passphrase)
	if err != nil {
		return nil, fmt.Errorf("encrypting the snapshot: %w", err)
	}
	r.SetWorkFactor(k.work)
	out, err := age.Encrypt(w, r)
	if err != nil {
		return nil, fmt.Errorf("encrypting the snapshot: %w", err)
	}
	return out, nil
}

func (k Key) decrypt(r io.Reader, h Header) (io.Reader, error) {
	switch {
	case h.Key != k.Kind && h.Key == FileKey:
		return nil, errors.New("it is encrypted with a key of its own, and not with the token: give --snapshot-key-file")
	case h.Key != k.Kind:
		return nil, errors.New("it is encrypted with the server token, and not with a key of its own: give --token")
	case k.cluster != "" && k.cluster != h.Cluster:
		return nil, fmt.Errorf("it is of another cluster than the token: the token names the authority %.12s…, and the snapshot %.12s…",
			k.cluster, h.Cluster)
	}
	id, err := age.NewScryptIdentity(k.passphrase)
	if err != nil {
		return nil, fmt.Errorf("decrypting the snapshot: %w", err)
	}
	id.SetMaxWorkFactor(scryptWork)
	out, err := age.Decrypt(r, id)
	if _, ok := errors.AsType[*age.NoIdentityMatchError](err); ok {
		what := "token: the server token of the time when the snapshot was made is needed, and not the agents' token"
		if k.Kind == FileKey {
			what = "key file"
		}
		return nil, fmt.Errorf("it cannot be decrypted with this %s", what)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: decrypting it: %w", ErrDamaged, err)
	}
	return out, nil
}
