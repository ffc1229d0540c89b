// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/server/sealed"
)

const (
	// TokensKey is where the store has the cluster's tokens, sealed, once they were rotated; tokensServers, with a
	// server's name behind it, is where that server says which generation of them it goes by.
	TokensKey     = "/coracle/tokens/cluster"
	tokensServers = "/coracle/tokens/servers/"
	// tokensFile in the server's folder says that the store has the tokens, and of which generation this server's are:
	// what was given on the command line does not count any more, and neither does a store that was set back to before.
	tokensFile = "tokens-rotated"
	// tokensSeenFile there says since when this server knows that tokens were replaced which work on for a time.
	tokensSeenFile = "tokens-seen"
	// clockSteps is how far a clock may be set back without that counting.
	clockSteps = time.Minute
	// tokensRetry is how long a server waits after it could not take the tokens over.
	tokensRetry = 2 * time.Second
)

// tokenRecord is what the store has.
type tokenRecord struct {
	// Generation grows with each change.
	Generation uint64 `json:"generation"`
	// Server and Agent are the secrets of the two tokens; Former are those that still let machines in.
	Server string        `json:"server"`
	Agent  string        `json:"agent"`
	Former []formerToken `json:"former,omitempty"`

	revision int64 // of the store's key; 0 while there is none
}

type formerToken struct {
	Role   token.Role `json:"role"`
	Secret string     `json:"secret"`
	Until  time.Time  `json:"until"`
	// Grace is how long it works from when a server sees that it was replaced; 0 in a record of an earlier version.
	Grace time.Duration `json:"grace,omitempty"`
}

func tokenBox(kv clientv3.KV, tlsDir string) (sealed.Box, error) {
	secret, err := os.ReadFile(filepath.Join(tlsDir, string(pki.PeerCA)+".key"))
	if err != nil {
		return sealed.Box{}, fmt.Errorf("reading the authority for servers: %w", err)
	}
	return sealed.Box{KV: kv, Secret: secret, Key: TokensKey}, nil
}

func readTokens(ctx context.Context, box sealed.Box) (r tokenRecord, err error) {
	r.revision, err = box.Get(ctx, &r)
	if err == nil && r.revision > 0 && (r.Generation == 0 || r.Server == "" || r.Agent == "" || r.Server == r.Agent) {
		err = errors.New("the cluster's tokens in the store are incomplete")
	}
	return r, err
}

// set are the tokens of a record, of a cluster whose authority has this hash.
func (r tokenRecord) set(caHash string) token.Set {
	out := token.Set{Server: token.Token{CAHash: caHash, Role: token.RoleServer, Secret: r.Server}, Agent: token.Token{CAHash: caHash, Role: token.RoleAgent, Secret: r.Agent}}
	for _, f := range r.Former {
		out.Former = append(out.Former, token.Former{Token: token.Token{CAHash: caHash, Role: f.Role, Secret: f.Secret}, Until: f.Until})
	}
	return out
}

// ensureTokens makes the tokens that are missing. Once the cluster's were rotated, what an operator gave this server
// before says nothing any more.
func (s *Server) ensureTokens() error {
	o := token.Options{Dir: s.o.ServerDir, Root: s.pki.Root(), Server: s.o.Token, Agent: s.o.AgentToken, Logger: s.log}
	rotated := fileExists(filepath.Join(s.o.ServerDir, tokensFile))
	if rotated {
		o.Server, o.Agent = "", ""
	}
	set, err := token.Ensure(o)
	if err != nil {
		return err
	}
	for _, given := range []struct {
		text string
		now  token.Token
	}{{s.o.Token, set.Server}, {s.o.AgentToken, set.Agent}} {
		if t, err := token.Parse(given.text); rotated && given.text != "" && (err != nil || t.Secret != given.now.Secret) {
			s.log.Warn("a token that this server was given was replaced since by coracle token rotate; it is not used. Leave it out", "role", given.now.Role)
		}
	}
	s.tokens.Store(&set)
	return nil
}

// TokenFiles are the files of a server's folder that have the tokens once they were replaced.
func TokenFiles() []string { return []string{token.ServerFile, token.AgentFile, tokensFile} }

// tokenGeneration is that of the tokens which this server has in its files; 0 if they were never replaced, or by a
// version that did not write it down.
func (s *Server) tokenGeneration() uint64 {
	data, err := os.ReadFile(filepath.Join(s.o.ServerDir, tokensFile))
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64) // an empty file is of such a version
	return n
}

// takeTokens makes this server's tokens those in the store, if there are any, and returns their generation. Where this
// server has later ones, the store was set back to a time before they were replaced: then they are put there again. A
// token that was replaced stays so.
func (s *Server) takeTokens(ctx context.Context, box sealed.Box) (uint64, error) {
	for {
		r, err := readTokens(ctx, box)
		if err != nil {
			return 0, err
		}
		if own := s.tokenGeneration(); own > r.Generation {
			err := s.putBackTokens(ctx, box, r, own)
			if errors.Is(err, sealed.ErrChanged) { // another server has done the same
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
		set := r.set(token.Hash(s.pki.Root()))
		if err := s.countHere(&set, r); err != nil {
			return 0, err
		}
		if err := token.Keep(s.o.ServerDir, set); err != nil {
			return 0, err
		}
		if _, err := atomicfile.WriteIfDifferent(filepath.Join(s.o.ServerDir, tokensFile), []byte(strconv.FormatUint(r.Generation, 10)+"\n"), 0o600); err != nil {
			return 0, err
		}
		s.tokens.Store(&set)
		return r.Generation, nil
	}
}

// seenToken is when this server saw that a token was replaced.
type seenToken struct {
	Hash string    `json:"hash"`
	At   time.Time `json:"at"`
}

// countHere has the tokens that were replaced work no longer than their time from when this server saw it. That is kept
// in a file, so that a new start does not begin the time anew. While the server runs its clock may be set as it likes:
// what is counted in memory does not follow it.
func (s *Server) countHere(set *token.Set, r tokenRecord) error {
	file := filepath.Join(s.o.ServerDir, tokensSeenFile)
	var kept []seenToken
	if data, err := os.ReadFile(file); err == nil {
		_ = json.Unmarshal(data, &kept) // a damaged one: the other end counts
	}
	running := map[string]token.Former{}
	if before := s.tokens.Load(); before != nil {
		for _, f := range before.Former {
			running[string(f.Role)+f.Secret] = f
		}
	}
	now, next := s.o.Clock.Now(), []seenToken{}
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
		} else if seen.At.After(now.Add(clockSteps)) { // the clock was set back meanwhile: how long ago it was is not known
			set.Former[i].Here = now
		}
	}
	if len(next) == 0 && len(kept) == 0 {
		return nil
	}
	data, err := json.Marshal(next)
	if err == nil {
		_, err = atomicfile.WriteIfDifferent(file, append(data, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("keeping when tokens were replaced: %w", err)
	}
	return nil
}

// putBackTokens writes the tokens of this server's files into a store that has earlier ones, or none.
func (s *Server) putBackTokens(ctx context.Context, box sealed.Box, r tokenRecord, own uint64) error {
	now, err := token.Read(s.o.ServerDir)
	if err != nil {
		return err
	}
	_, err = box.Put(ctx, tokenRecord{Generation: own + 1, Server: now.Server.Secret, Agent: now.Agent.Secret}, r.revision)
	if err == nil {
		s.log.Warn("the store has tokens of before they were replaced, since it was set back to an earlier time; those that this server has count again", "generation", own+1)
	}
	return err
}

// keepTokens follows the tokens in the store until ctx is done, and says which this server goes by.
func (s *Server) keepTokens(ctx context.Context, store *raftstore.Store, box sealed.Box) {
	last := ""
	for ctx.Err() == nil {
		err := s.followTokens(ctx, store.Client().Watcher, box)
		if err == nil || ctx.Err() != nil {
			continue
		}
		if err.Error() != last {
			last = err.Error()
			s.log.Warn("the cluster's tokens cannot be compared with this server's; it is tried again", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(tokensRetry):
		}
	}
}

func (s *Server) followTokens(ctx context.Context, watcher clientv3.Watcher, box sealed.Box) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the watch
	now, err := box.KV.Get(ctx, TokensKey, clientv3.WithKeysOnly())
	if err != nil {
		return fmt.Errorf("reading the cluster's tokens in the store: %w", err)
	}
	changes := watcher.Watch(ctx, TokensKey, clientv3.WithRev(now.Header.Revision+1))
	for {
		generation, err := s.takeTokens(ctx, box)
		if err != nil {
			return err
		}
		if generation > 0 {
			if _, err := box.KV.Put(ctx, tokensServers+s.data.ServerID(), strconv.FormatUint(generation, 10)); err != nil {
				return fmt.Errorf("telling that this server has the cluster's tokens: %w", err)
			}
			s.log.Info("this server goes by the cluster's tokens", "generation", generation)
		}
		select {
		case <-ctx.Done():
			return nil
		case w, open := <-changes:
			if err := w.Err(); !open || err != nil {
				return errors.Join(errors.New("the watch for the cluster's tokens has ended"), err)
			}
		}
	}
}

// RotateToken replaces one of the cluster's tokens on all servers. serverDir is the folder of one of them. It returns
// the new token, and the names of those servers that have not taken it over within patience: one that is off does when
// it starts, before it lets anybody in.
func RotateToken(ctx context.Context, kv clientv3.KV, serverDir string, rotation token.Rotation, servers []string, patience time.Duration) (token.Token, []string, error) {
	box, err := tokenBox(kv, filepath.Join(serverDir, "tls"))
	if err != nil {
		return token.Token{}, nil, err
	}
	r, err := readTokens(ctx, box)
	if err != nil {
		return token.Token{}, nil, err
	}
	own, err := token.Read(serverDir)
	if err != nil {
		return token.Token{}, nil, err
	}
	if r.revision == 0 {
		r.Server, r.Agent = own.Server.Secret, own.Agent.Secret
	}
	now := rotation.Now
	next, err := rotation.Next(r.set(own.Server.CAHash))
	if err != nil {
		return token.Token{}, nil, err
	}
	former := formerToken{Role: next.Role, Secret: r.Agent, Until: now.Add(rotation.Grace), Grace: rotation.Grace}
	if next.Role == token.RoleServer {
		former.Secret, r.Server = r.Server, next.Secret
	} else {
		r.Agent = next.Secret
	}
	// Who gives the present token no time wants that the next one alone works: also not one that an earlier replacement
	// gave some.
	r.Former = slices.DeleteFunc(r.Former, func(f formerToken) bool {
		return !f.Until.After(now) || f.Role == former.Role && (f.Secret == next.Secret || rotation.Grace <= 0)
	})
	if rotation.Grace > 0 {
		r.Former = append(r.Former, former)
	}
	r.Generation++
	_, err = box.Put(ctx, r, r.revision)
	switch {
	case errors.Is(err, sealed.ErrChanged):
		return token.Token{}, nil, errors.New("another command replaced a token at this moment; nothing was changed by this one. Look at the token now (coracle token print), and run it again if it is to be replaced once more")
	case err != nil:
		return token.Token{}, nil, fmt.Errorf("%w. The token may have been replaced all the same: coracle token print shows the one that works", err)
	}
	behind, err := awaitTokens(ctx, kv, servers, r.Generation, patience)
	return next, behind, err
}

// awaitTokens waits until servers go by a generation of the tokens, and returns those that do not in time.
func awaitTokens(ctx context.Context, kv clientv3.KV, servers []string, generation uint64, patience time.Duration) ([]string, error) {
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
			if len(behind) == 0 || time.Since(began) > patience {
				return behind, nil
			}
		} else if time.Since(began) > patience {
			return servers, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("the token was replaced; which servers have taken it over is not known: %w", ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
}
