// SPDX-License-Identifier: Apache-2.0

// Package token makes, parses and checks the tokens with which machines join the cluster.
//
// A token contains the hash of the cluster's certificate authority. So a joining machine verifies the server before it
// sends anything, and an attacker in between cannot get a token. Two tokens stay valid until they are rotated, and each
// server has them in files (files.go). Bootstrap tokens expire, and are Secrets of the cluster (bootstrap.go):
//
//	CRC1<sha256 of the CA, hex>::server:<secret>        may add a server, that is: read the cluster's keys
//	CRC1<sha256 of the CA, hex>::agent:<secret>         may add a node
//	CRC1<sha256 of the CA, hex>::<id>.<secret>          may add a node until it expires (a bootstrap token)
//
// The package owns the token files of a server. It never talks to another machine.
package token

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"strings"
)

const (
	prefix    = "CRC1"
	separator = "::"
)

// Role is what a machine may become with a token.
type Role string

// The roles. A bootstrap token's role is RoleBootstrap until the checking server looks up its purpose.
const (
	RoleServer    Role = "server"
	RoleAgent     Role = "agent"
	RoleBootstrap Role = "bootstrap"
)

// Token has the fields of a join token.
type Token struct {
	// CAHash is the SHA-256 of the DER of the authority's root, in lower-case hex. It is empty when a bare secret was
	// given.
	CAHash string
	// Role is empty when a bare secret was given.
	Role Role
	// ID is set for bootstrap tokens only.
	ID string
	// Secret is the secret part of the token. A machine proves that it knows the secret.
	Secret string
}

var (
	hashForm      = regexp.MustCompile(`^[0-9a-f]{64}$`)
	bootstrapForm = regexp.MustCompile(`^([a-z0-9]{6})\.([a-z0-9]{16})$`)
	secretForm    = regexp.MustCompile(`^[!-~]+$`) // printable, no blanks: it is pasted into shells and unit files
)

// Hash returns an authority's hash as it is in tokens.
func Hash(root *x509.Certificate) string {
	sum := sha256.Sum256(root.Raw)
	return hex.EncodeToString(sum[:])
}

// New makes a token of a role with 128 random bits.
func New(root *x509.Certificate, role Role) (Token, error) {
	secret, err := newSecret()
	return Token{CAHash: Hash(root), Role: role, Secret: secret}, err
}

func newSecret() (string, error) {
	secret := make([]byte, 16)
	if _, err := rand.Read(secret); err != nil {
		return "", fmt.Errorf("making a token: %w", err)
	}
	return hex.EncodeToString(secret), nil
}

// String returns the token in the form that users pass on.
func (t Token) String() string {
	secret := t.Secret
	switch {
	case t.Role == RoleBootstrap:
		secret = t.ID + "." + t.Secret
	case t.Role != "":
		secret = string(t.Role) + ":" + t.Secret
	}
	if t.CAHash == "" {
		return secret
	}
	return prefix + t.CAHash + separator + secret
}

// Parse parses a token, or a bare secret that an operator chose.
func Parse(s string) (Token, error) {
	s = strings.TrimSpace(s)
	if s == "" {
		return Token{}, errors.New("the token is empty")
	}
	var t Token
	rest := s
	switch {
	case strings.HasPrefix(s, prefix) && strings.Contains(s, separator):
		var hash string
		hash, rest, _ = strings.Cut(strings.TrimPrefix(s, prefix), separator)
		if t.CAHash = strings.ToLower(hash); !hashForm.MatchString(t.CAHash) {
			return Token{}, fmt.Errorf("the token's hash has %d characters and should be 64 hex digits: was it cut off when copied?",
				len(hash))
		}
	case strings.HasPrefix(s, "K10") && strings.Contains(s, separator):
		return Token{},
			errors.New("this is a token of a k3s cluster, and this is Coracle: `coracle token` on a server prints the right one")
	case seemsTruncated(s):
		return Token{}, fmt.Errorf("the token starts like one of Coracle but has no %q part: was it cut off when copied?", separator)
	}
	if m := bootstrapForm.FindStringSubmatch(rest); m != nil {
		t.Role, t.ID, t.Secret = RoleBootstrap, m[1], m[2]
		return t, nil
	}
	role, secret, found := strings.Cut(rest, ":")
	if !found {
		if t.CAHash != "" {
			return Token{}, fmt.Errorf("the token does not name its role: %q should be followed by server:, agent: or an id and a dot",
				separator)
		}
		secret = rest
	} else if t.Role = Role(role); t.CAHash == "" && t.Role != RoleServer && t.Role != RoleAgent {
		return Token{}, errors.New("a token of one's own has no colon: in a token, the words before the first colon name its role, " +
			"server or agent. Choose one without a colon")
	} else if t.Role != RoleServer && t.Role != RoleAgent {
		return Token{}, fmt.Errorf("the token is for %q, which should be server or agent", role)
	}
	if !secretForm.MatchString(secret) {
		return Token{}, errors.New("the token's secret is empty, or has blanks or unprintable characters in it")
	}
	t.Secret = secret
	return t, nil
}

// seemsTruncated reports whether s is the beginning of a full token: prefix and hex digits.
func seemsTruncated(s string) bool {
	hash, ok := strings.CutPrefix(s, prefix)
	return ok && len(hash) > 16 && strings.Trim(hash, "0123456789abcdef:") == ""
}

// ErrOtherCluster is the error of VerifyCA for a token that names another authority.
var ErrOtherCluster = errors.New("the token belongs to another cluster")

// VerifyCA checks that root is the authority that the token names. A token without a hash accepts any root. Callers
// that need certainty check CAHash first.
func (t Token) VerifyCA(root *x509.Certificate) error {
	if t.CAHash == "" {
		return nil
	}
	if got := Hash(root); subtle.ConstantTimeCompare([]byte(got), []byte(t.CAHash)) != 1 {
		return fmt.Errorf("%w, or another machine intercepts the connection: the token names the authority %.12s…, and the server has %.12s…. "+
			"Nothing was sent; get the token again with `coracle token` on a server of the cluster", ErrOtherCluster, t.CAHash, got)
	}
	return nil
}
