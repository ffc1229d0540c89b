// SPDX-License-Identifier: Apache-2.0

package secrets

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/utils/clock"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/internal/nodecreds"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/server/storecrypt"
)

const (
	// TokensKey is the store's key with the cluster's tokens, sealed. It exists once they were rotated. tokensServers,
	// followed by a server's name, is the key with the generation that the server has.
	TokensKey     = "/coracle/tokens/cluster"
	tokensServers = "/coracle/tokens/servers/"
	// tokensFile, in the server's folder, says that the tokens are in the store, which generation this server has, and
	// which nodes are revoked. The tokens on the command line are then not used any more, and neither are those of a
	// store that was restored to an earlier state.
	tokensFile = "tokens-rotated"
	// tokensSeenFile, in the same folder, says since when this server knows of replaced tokens that are still valid for
	// a time.
	tokensSeenFile = "tokens-seen"
	// clockSteps is by how much a clock may be set back without effect.
	clockSteps = time.Minute
	// tokensRetry is the pause after the tokens could not be updated.
	tokensRetry = 2 * time.Second
)

// storedTokens is the value in the store that all servers share.
type storedTokens struct {
	// Generation is incremented by each change.
	Generation uint64 `json:"generation"`
	// Server and Agent are the secrets of the two tokens. Former are replaced tokens that are still valid.
	Server string        `json:"server"`
	Agent  string        `json:"agent"`
	Former []formerToken `json:"former,omitempty"`
	// Revoked are the revoked nodes. Unfinished are those whose revocation has not ended (RevokeNode).
	Revoked    nodecreds.Revoked `json:"revoked,omitempty"`
	Unfinished []string          `json:"unfinished,omitempty"`

	revision int64 // of the store's key; 0 while there is none
}

type formerToken struct {
	Role   token.Role `json:"role"`
	Secret string     `json:"secret"`
	Until  time.Time  `json:"until"`
	// Grace is how long the token is valid after a server sees that it was replaced. It is 0 in a record of an earlier
	// version.
	Grace time.Duration `json:"grace,omitempty"`
}

func tokenBox(kv clientv3.KV, tlsDir string) (storecrypt.Box, error) {
	secret, err := os.ReadFile(filepath.Join(tlsDir, string(pki.PeerCA)+".key"))
	if err != nil {
		return storecrypt.Box{}, fmt.Errorf("reading the authority for servers: %w", err)
	}
	return storecrypt.Box{KV: kv, Secret: secret, Key: TokensKey}, nil
}

func readTokens(ctx context.Context, box storecrypt.Box) (r storedTokens, err error) {
	r.revision, err = box.Get(ctx, &r)
	if err == nil && r.revision > 0 && (r.Generation == 0 || r.Server == "" || r.Agent == "" || r.Server == r.Agent) {
		err = errors.New("the cluster's tokens in the store are incomplete")
	}
	return r, err
}

// tokenSet returns the tokens of a record. caHash is the hash of the cluster's CA.
func (r storedTokens) tokenSet(caHash string) token.Set {
	out := token.Set{Server: token.Token{CAHash: caHash, Role: token.RoleServer, Secret: r.Server},
		Agent: token.Token{CAHash: caHash, Role: token.RoleAgent, Secret: r.Agent}}
	for _, f := range r.Former {
		out.Former = append(out.Former, token.Former{Token: token.Token{CAHash: caHash, Role: f.Role, Secret: f.Secret}, Until: f.Until})
	}
	return out
}

// TokenOptions are the parameters of NewTokens.
type TokenOptions struct {
	Folders  Folders
	ServerID string
	// Root is the CA that the tokens pin.
	Root *x509.Certificate
	// Server and Agent are the tokens that an operator chose, or empty.
	Server, Agent string
	// Guard refuses the revoked nodes at this server. It may be nil.
	Guard  *nodecreds.Guard
	Clock  clock.PassiveClock
	Logger *slog.Logger
}

// Tokens are the tokens that a server accepts. They may be replaced while it runs.
type Tokens struct {
	o       TokenOptions
	box     storecrypt.Box // Open sets it
	current atomic.Pointer[token.Set]
}

// NewTokens makes missing tokens. Once the cluster's tokens were rotated, tokens that an operator gave to this server
// are ignored.
func NewTokens(given TokenOptions) (*Tokens, error) {
	t := &Tokens{o: given}
	o := token.Options{Dir: given.Folders.Server, Root: given.Root, Server: given.Server, Agent: given.Agent, Logger: given.Logger}
	_, statErr := os.Lstat(filepath.Join(o.Dir, tokensFile))
	rotated := statErr == nil
	if rotated {
		o.Server, o.Agent = "", ""
	}
	set, err := token.Ensure(o)
	if err != nil {
		return nil, err
	}
	for _, of := range []struct {
		text string
		now  token.Token
	}{{given.Server, set.Server}, {given.Agent, set.Agent}} {
		if has, err := token.Parse(of.text); rotated && of.text != "" && (err != nil || has.Secret != of.now.Secret) {
			given.Logger.Warn("a token in this server's configuration was replaced by coracle token rotate and is ignored. Remove it from the configuration",
				"role", of.now.Role)
		}
	}
	t.current.Store(&set)
	given.Guard.Set(t.knownGeneration().Revoked)
	return t, nil
}

// Now returns the current tokens.
func (t *Tokens) Now() *token.Set { return t.current.Load() }

// Open sets the store that has the cluster's tokens. Pull and Run need it.
func (t *Tokens) Open(kv clientv3.KV) (err error) {
	t.box, err = tokenBox(kv, t.o.Folders.TLS)
	return err
}

// TokenFiles returns the files of a server's folder that have the tokens once they were replaced.
func TokenFiles() []string { return []string{token.ServerFile, token.AgentFile, tokensFile} }

// knownGeneration returns the generation of the tokens in this server's files, and the revoked nodes. The generation is
// 0 if the tokens were never replaced, or by a version that did not record it.
func (t *Tokens) knownGeneration() storedTokens {
	data, err := os.ReadFile(filepath.Join(t.o.Folders.Server, tokensFile))
	if err != nil {
		return storedTokens{}
	}
	first, nodes, _ := strings.Cut(string(data), "\n")
	out := storedTokens{Revoked: nodecreds.Revoked{}}
	out.Generation, _ = strconv.ParseUint(first, 10, 64) // such a version wrote an empty file
	for line := range strings.Lines(nodes) {
		name, number, _ := strings.Cut(strings.TrimSpace(line), " ")
		if n, err := strconv.ParseUint(number, 10, 64); err == nil {
			out.Revoked[name] = n
		}
	}
	return out
}

func (t *Tokens) recordGeneration(r storedTokens) error {
	var text strings.Builder
	fmt.Fprintln(&text, r.Generation)
	for _, name := range slices.Sorted(maps.Keys(r.Revoked)) {
		fmt.Fprintln(&text, name, r.Revoked[name])
	}
	_, err := atomicfile.WriteIfDifferent(filepath.Join(t.o.Folders.Server, tokensFile), []byte(text.String()), 0o600)
	return err
}

// Pull updates this server's tokens and revoked nodes from the store, if that has any, and returns their generation. If
// this server has a later generation, or a revocation that the store lacks, the store was restored to an earlier time.
// Pull then writes what this server has to the store again, so that replaced tokens and revoked nodes remain invalid.
func (t *Tokens) Pull(ctx context.Context) (uint64, error) {
	for {
		r, err := readTokens(ctx, t.box)
		if err != nil {
			return 0, err
		}
		if own := t.knownGeneration(); own.Generation > r.Generation || r.Revoked.Lacks(own.Revoked) {
			err := t.putBack(ctx, r, own)
			if errors.Is(err, storecrypt.ErrChanged) { // another server has done the same
				continue
			}
			if err != nil {
				return 0, err
			}
			continue
		}
		if r.revision == 0 {
			return 0, nil
		}
		set := r.tokenSet(token.Hash(t.o.Root))
		err = t.countHere(&set, r)
		if err != nil {
			set.Former = nil // how long they are valid here is not known
		}
		t.current.Store(&set)
		t.o.Guard.Set(r.Revoked) // after the tokens: a revoked node's machine cannot join by the former one
		if err == nil {          // the files last: what is revoked is refused on a full disk, too
			err = token.Save(t.o.Folders.Server, set)
		}
		if err == nil {
			err = t.recordGeneration(r)
		}
		if err != nil {
			return 0, err
		}
		return r.Generation, nil
	}
}

// seenToken records when this server saw that a token was replaced.
type seenToken struct {
	Hash string    `json:"hash"`
	At   time.Time `json:"at"`
}

// countHere limits the validity of replaced tokens to their grace from when this server saw the replacement. That
// moment is kept in a file, so that a restart does not begin the time again. Setting the clock while the server runs
// has no effect: the limit in memory does not follow it.
func (t *Tokens) countHere(set *token.Set, r storedTokens) error {
	file := filepath.Join(t.o.Folders.Server, tokensSeenFile)
	var kept []seenToken
	_, _ = atomicfile.ReadJSON(file, &kept) // damaged: the grace begins again, but Until still holds
	running := map[string]token.Former{}
	if before := t.current.Load(); before != nil {
		for _, f := range before.Former {
			running[string(f.Role)+f.Secret] = f
		}
	}
	now, next := t.o.Clock.Now(), []seenToken{}
	for i, f := range r.Former {
		if f.Grace <= 0 {
			continue
		}
		hash := sha256.Sum256([]byte(string(f.Role) + f.Secret + f.Until.UTC().Format(time.RFC3339Nano)))
		seen := seenToken{hex.EncodeToString(hash[:]), now}
		if k := slices.IndexFunc(kept, func(k seenToken) bool { return k.Hash == seen.Hash }); k >= 0 {
			seen.At = kept[k].At
		}
		next = append(next, seen)
		set.Former[i].Here = seen.At.Add(f.Grace)
		if was, ok := running[string(f.Role)+f.Secret]; ok && was.Until.Equal(f.Until) && !was.Here.IsZero() {
			set.Former[i].Here = was.Here
		} else if seen.At.After(now.Add(clockSteps)) { // the clock was set back: the elapsed time is not known
			set.Former[i].Here = now
		}
	}
	if len(next) == 0 && len(kept) == 0 {
		return nil
	}
	if err := atomicfile.WriteJSON(file, next, 0o600); err != nil {
		return fmt.Errorf("saving when tokens were replaced: %w", err)
	}
	return nil
}

// putBack writes the tokens of this server's files into a store that has earlier ones, or none, and the revoked nodes
// that it lacks.
func (t *Tokens) putBack(ctx context.Context, r, own storedTokens) error {
	next := r
	if own.Generation > r.Generation {
		now, err := token.Read(t.o.Folders.Server)
		if err != nil {
			return err
		}
		next = storedTokens{Server: now.Server.Secret, Agent: now.Agent.Secret}
	}
	next.Generation, next.Revoked = max(own.Generation, r.Generation)+1, r.Revoked.With(own.Revoked)
	_, err := t.box.Put(ctx, next, r.revision)
	if err == nil {
		t.o.Logger.Warn("the store was restored to a time before the cluster's tokens were replaced or a node was revoked; writing "+
			"what this server has to it again", "generation", next.Generation)
	}
	return err
}

// Run follows the tokens in the store until ctx is done, and records the generation that this server has.
func (t *Tokens) Run(ctx context.Context, watcher clientv3.Watcher) {
	trouble := "the cluster's tokens cannot be compared with this server's; retrying"
	timers.Retry(ctx, t.o.Logger, tokensRetry, trouble, func() error { return follow(ctx, t.box.KV, watcher, TokensKey, t.apply) })
}

// apply updates the tokens from the store and records their generation.
func (t *Tokens) apply(ctx context.Context) error {
	generation, err := t.Pull(ctx)
	if err != nil || generation == 0 {
		return err
	}
	if _, err := t.box.KV.Put(ctx, tokensServers+t.o.ServerID, strconv.FormatUint(generation, 10)); err != nil {
		return fmt.Errorf("recording that this server has the cluster's tokens: %w", err)
	}
	t.o.Logger.Info("this server uses the cluster's present tokens", "generation", generation)
	return nil
}

// follow calls apply once, and then at each change of a key in the store, until ctx is done or the watch ends.
func follow(ctx context.Context, kv clientv3.KV, watcher clientv3.Watcher, key string, apply func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the watch
	now, err := kv.Get(ctx, key, clientv3.WithKeysOnly())
	if err != nil {
		return fmt.Errorf("reading %s in the store: %w", key, err)
	}
	changes := watcher.Watch(ctx, key, clientv3.WithRev(now.Header.Revision+1))
	for {
		if err := apply(ctx); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case w, open := <-changes:
			if err := w.Err(); !open || err != nil {
				return errors.Join(fmt.Errorf("the watch for %s in the store has ended", key), err)
			}
		}
	}
}

// RotateToken replaces one of the cluster's tokens on all servers. serverDir is the folder of one server. It returns
// the new token, and the names of the servers that have not updated their tokens within timeout. A server that is off
// updates them when it starts, before it admits a machine.
func RotateToken(ctx context.Context, kv clientv3.KV, serverDir string, rotation token.RotationRequest, servers []string,
	timeout time.Duration) (token.Token, []string, error) {
	box, r, caHash, err := presentTokens(ctx, kv, serverDir)
	if err != nil {
		return token.Token{}, nil, err
	}
	next, err := r.replace(rotation, caHash)
	if err != nil {
		return token.Token{}, nil, err
	}
	r.Generation++
	_, err = box.Put(ctx, r, r.revision)
	switch {
	case errors.Is(err, storecrypt.ErrChanged):
		return token.Token{}, nil, errors.New("another command replaced a token at this moment; nothing was changed by this one. Check " +
			"the token now (coracle token print), and run it again if it is to be replaced once more")
	case err != nil:
		return token.Token{}, nil,
			fmt.Errorf("%w. The token may have been replaced all the same: coracle token print shows the one that works", err)
	}
	behind, err := AwaitServers(ctx, kv, servers, r.Generation, timeout)
	return next, behind, err
}

// presentTokens returns the record in the store. If there is none yet, it has the tokens of a server's folder.
func presentTokens(ctx context.Context, kv clientv3.KV, serverDir string) (box storecrypt.Box, r storedTokens, caHash string, err error) {
	if box, err = tokenBox(kv, filepath.Join(serverDir, "tls")); err != nil {
		return box, r, "", err
	}
	if r, err = readTokens(ctx, box); err != nil {
		return box, r, "", err
	}
	own, err := token.Read(serverDir)
	if r.revision == 0 {
		r.Server, r.Agent = own.Server.Secret, own.Agent.Secret
	}
	return box, r, own.Server.CAHash, err
}

// replace replaces one of the tokens, and returns the new one.
func (r *storedTokens) replace(rotation token.RotationRequest, caHash string) (token.Token, error) {
	now := rotation.Now
	next, err := rotation.Next(r.tokenSet(caHash))
	if err != nil {
		return token.Token{}, err
	}
	former := formerToken{Role: next.Role, Secret: r.Agent, Until: now.Add(rotation.Grace), Grace: rotation.Grace}
	if next.Role == token.RoleServer {
		former.Secret, r.Server = r.Server, next.Secret
	} else {
		r.Agent = next.Secret
	}
	// Without a grace for the present token, only the new one may be valid. This also ends the grace that an earlier
	// rotation gave.
	r.Former = slices.DeleteFunc(r.Former, func(f formerToken) bool {
		return !f.Until.After(now) || f.Role == former.Role && (f.Secret == next.Secret || rotation.Grace <= 0)
	})
	if rotation.Grace > 0 {
		r.Former = append(r.Former, former)
	}
	return next, nil
}

// AwaitServers waits until servers have a generation of the tokens, and refuse what was revoked up to it. It returns
// those that have not said so within timeout. A server that is off does so when it starts, before it serves.
func AwaitServers(ctx context.Context, kv clientv3.KV, servers []string, generation uint64, timeout time.Duration) ([]string, error) {
	began := time.Now()
	for {
		answer, err := kv.Get(ctx, tokensServers, clientv3.WithPrefix())
		if err == nil {
			behind := slices.Clone(servers)
			for _, has := range answer.Kvs {
				name := strings.TrimPrefix(string(has.Key), tokensServers)
				if n, err := strconv.ParseUint(string(has.Value), 10, 64); err == nil && n >= generation {
					behind = slices.DeleteFunc(behind, func(s string) bool { return s == name })
				}
			}
			if len(behind) == 0 || time.Since(began) > timeout {
				return behind, nil
			}
		} else if time.Since(began) > timeout {
			return servers, nil
		}
		if !timers.Sleep(ctx, 200*time.Millisecond) {
			return nil, fmt.Errorf("the token was replaced; which servers already use it is unknown: %w", ctx.Err())
		}
	}
}
