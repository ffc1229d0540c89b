// SPDX-License-Identifier: Apache-2.0

package token

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

// Options are where a server's tokens are stored and which ones the operator chose.
type Options struct {
	// Dir is the server's folder. It has the files token, agent-token and node-token (a link to agent-token, the name
	// that users know from k3s).
	Dir string
	// Root is the authority that tokens name.
	Root *x509.Certificate
	// Server and Agent are the operator's values (--token, --agent-token): a whole token, or a bare secret. Empty means
	// the file's token, or a new random one.
	Server, Agent string
	// Logger logs changes. nil means slog's default.
	Logger *slog.Logger
}

// Set is the pair of lasting tokens with which machines join this cluster.
type Set struct {
	Server, Agent Token
	// Former are tokens that were replaced and still work.
	Former []Former
}

// Files of the server's folder, relative to Options.Dir.
const (
	ServerFile = "token"
	AgentFile  = "agent-token"
	NodeFile   = "node-token"
)

// Ensure returns the cluster's tokens. It makes and writes missing ones.
func Ensure(o Options) (Set, error) {
	o.Logger = cmp.Or(o.Logger, slog.Default())
	var (
		s    Set
		errs [2]error
	)
	s.Server, errs[0] = o.ensureToken(ServerFile, RoleServer, o.Server)
	s.Agent, errs[1] = o.ensureToken(AgentFile, RoleAgent, o.Agent)
	if err := errors.Join(errs[:]...); err != nil {
		return Set{}, err
	}
	if s.Server.Secret == s.Agent.Secret {
		return Set{}, errors.New("the server token and the agent token are the same: whoever may add a node could then take " +
			"over the cluster. Give --agent-token another value, or leave it out")
	}
	return s, linkNodeToken(o.Dir)
}

func (o Options) ensureToken(file string, role Role, given string) (Token, error) {
	path := filepath.Join(o.Dir, file)
	t, err := o.read(path, role)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		if given == "" {
			return Token{}, fmt.Errorf("%w. Restore %s from a backup, or remove it: a new token is then made, and machines "+
				"that join later need that one", err, path)
		}
		o.Logger.Warn("the token file was damaged and is replaced by the token given", "file", path, "error", err)
	}
	missing := err != nil
	switch {
	case given != "":
		want, err := o.completeToken(role, given)
		if err != nil {
			return Token{}, err
		}
		if !missing && want.Secret != t.Secret {
			o.Logger.Info("replaced the token by the given one; machines that join later need it", "role", role, "file", path)
		}
		t = want
	case missing:
		if t, err = New(o.Root, role); err != nil {
			return Token{}, err
		}
	}
	_, err = atomicfile.WriteIfDifferent(path, []byte(t.String()+"\n"), 0o600)
	return t, err
}

func (o Options) read(path string, role Role) (Token, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Token{}, err
	}
	t, err := Parse(string(data))
	if err != nil {
		return Token{}, fmt.Errorf("the token in %s cannot be read: %w", path, err)
	}
	if t.Role != role && t.Role != "" {
		return Token{}, fmt.Errorf("%s holds a token for another role (%s)", path, t.Role)
	}
	if t.VerifyCA(o.Root) != nil {
		return Token{},
			fmt.Errorf("%w: %s names another certificate authority than this server has, so files of two clusters are mixed in "+
				"its folder, or server-ca was replaced before a start of this version has recorded its first certificate: then start once "+
				"with the former one. Nothing was changed", ErrOtherCluster, path)
	}
	t.Role, t.CAHash = role, Hash(o.Root)
	return t, nil
}

// completeToken converts the operator's value to a full token of this cluster.
func (o Options) completeToken(role Role, given string) (Token, error) {
	flag := map[Role]string{RoleServer: "--token", RoleAgent: "--agent-token"}[role]
	t, err := Parse(given)
	if err != nil {
		return Token{}, fmt.Errorf("%s: %w", flag, err)
	}
	if t.Role == RoleBootstrap {
		return Token{}, fmt.Errorf("%s: that is a token which expires (made by `coracle token create`); a cluster's own token cannot have "+
			"the form of one", flag)
	}
	if t.Role != "" && t.Role != role {
		return Token{}, fmt.Errorf("%s: that is a token for the role %q, and one for %q is wanted", flag, t.Role, role)
	}
	if err := t.VerifyCA(o.Root); err != nil {
		return Token{}, fmt.Errorf("%s: %w", flag, err)
	}
	return Token{CAHash: Hash(o.Root), Role: role, Secret: t.Secret}, nil
}

func linkNodeToken(dir string) error {
	path := filepath.Join(dir, NodeFile)
	if target, err := os.Readlink(path); err == nil && target == AgentFile {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("linking %s: %w", path, err)
	}
	if err := os.Symlink(AgentFile, path); err != nil {
		return fmt.Errorf("linking %s: %w", path, err)
	}
	return nil
}
