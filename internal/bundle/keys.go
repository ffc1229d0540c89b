// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"aead.dev/minisign"
)

// SiteKeysFile has the keys that the operators of a machine trust, besides the release keys of the program.
const SiteKeysFile = "/etc/coracle/trusted-keys"

// releaseKeys are the release keys of this build: their threshold and the keys, separated by commas. The linker sets
// it; a build without it has none.
var releaseKeys string

// maxKeys is how many keys a set may have.
const maxKeys = maxSignatures

// Keys is a set of public keys.
type Keys struct {
	// Threshold is how many different keys of the set have to sign.
	Threshold int
	Public    []minisign.PublicKey
}

// NamedKeys is a set of public keys as text, in the form of minisign's public keys.
type NamedKeys struct {
	Threshold int      `json:"threshold"`
	Keys      []string `json:"keys"`
}

// Trusted says which keys a machine trusts.
type Trusted struct {
	// Release are the keys of those who release coracle. Site are the keys of the machine's operators. A bundle that
	// one of the sets accepts is accepted.
	Release, Site Keys
	// RequireSite means that signatures by release keys alone are not enough.
	RequireSite bool
	// RequireSigned means that this machine takes no program without a bundle.
	RequireSigned bool
}

// Trust returns the keys that this build trusts, with those of a file, which need not exist (SiteKeysFile).
func Trust(file string) (t Trusted, err error) {
	if releaseKeys != "" {
		parts := strings.Split(releaseKeys, ",")
		n, err := strconv.Atoi(parts[0])
		if err == nil {
			t.Release, err = NamedKeys{n, parts[1:]}.parse()
		}
		if err != nil {
			return t, fmt.Errorf("the release keys that this program was built with cannot be read: %w", err)
		}
	}
	site, err := readSite(file)
	if errors.Is(err, fs.ErrNotExist) {
		return t, nil
	}
	site.Release = t.Release
	return site, err
}

// ReadKeys reads a file of public keys (readSite) without its other settings.
func ReadKeys(file string) (Keys, error) {
	t, err := readSite(file)
	return t.Site, err
}

// readSite reads the file of a machine's trusted keys. Each line has one key, "threshold: N", "require-site: true" or
// "require-signed: true". Comments begin with # or, as in the files of minisign, with "untrusted comment:". Without a
// threshold, one signature is enough.
func readSite(file string) (t Trusted, err error) {
	info, err := os.Stat(file)
	if err != nil {
		return t, fmt.Errorf("reading the trusted keys: %w", err)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return t, fmt.Errorf("%s can be written by others than its owner, so its keys are not trusted: chmod 644 %s", file, file)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return t, fmt.Errorf("reading the trusted keys: %w", err)
	}
	named := NamedKeys{Threshold: 1}
	n := 0
	for line := range strings.Lines(string(data)) {
		n++
		line = strings.TrimSpace(line)
		name, value, isSetting := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch {
		case line == "" || line[0] == '#' || name == "untrusted comment":
		case isSetting && name == "threshold":
			named.Threshold, err = strconv.Atoi(value)
		case isSetting && name == "require-site":
			t.RequireSite, err = strconv.ParseBool(value)
		case isSetting && name == "require-signed":
			t.RequireSigned, err = strconv.ParseBool(value)
		case isSetting:
			err = fmt.Errorf("there is no setting %q", name)
		default:
			named.Keys = append(named.Keys, line)
			err = new(minisign.PublicKey).UnmarshalText([]byte(line))
		}
		if err != nil {
			return t, fmt.Errorf("%s, line %d: %w", file, n, err)
		}
	}
	if t.Site, err = named.parse(); err != nil {
		return t, fmt.Errorf("%s: %w", file, err)
	}
	return t, nil
}

// parse returns the keys, which are different ones, and a threshold that they can reach.
func (n NamedKeys) parse() (k Keys, err error) {
	if len(n.Keys) > maxKeys {
		return k, fmt.Errorf("%d keys are listed, at most %d are allowed", len(n.Keys), maxKeys)
	}
	for _, text := range n.Keys {
		var key minisign.PublicKey
		if err := key.UnmarshalText([]byte(text)); err != nil {
			return k, err
		}
		if slices.ContainsFunc(k.Public, func(other minisign.PublicKey) bool { return other.ID() == key.ID() || sameKey(other, key) }) {
			return k, fmt.Errorf("the key %s is listed twice", keyID(key.ID()))
		}
		k.Public = append(k.Public, key)
	}
	if len(k.Public) > 0 && (n.Threshold < 1 || n.Threshold > len(k.Public)) {
		return k, fmt.Errorf("the threshold is %d, and there are %d keys", n.Threshold, len(k.Public))
	}
	k.Threshold = n.Threshold
	return k, nil
}

// sameKey says whether two public keys are of the same private key. Their numbers, which can be chosen freely, may
// differ.
func sameKey(a, b minisign.PublicKey) bool {
	const before = 10 // the algorithm and the number, in bytes
	x, errX := base64.StdEncoding.DecodeString(a.String())
	y, errY := base64.StdEncoding.DecodeString(b.String())
	return errX == nil && errY == nil && bytes.Equal(x[before:], y[before:])
}

// Named returns the set as text.
func (k Keys) Named() *NamedKeys {
	n := &NamedKeys{Threshold: k.Threshold}
	for _, key := range k.Public {
		n.Keys = append(n.Keys, key.String())
	}
	slices.Sort(n.Keys)
	return n
}

// equal says whether both sets are the same.
func (k Keys) equal(other Keys) bool {
	return k.Threshold == other.Threshold && slices.Equal(k.Named().Keys, other.Named().Keys)
}
