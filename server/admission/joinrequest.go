// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"k8s.io/utils/clock"

	"github.com/coracle-k8s/coracle/gossip"
	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/joining/protocol"
	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/server/gossipmember"
	"github.com/coracle-k8s/coracle/server/roster"
	"github.com/coracle-k8s/coracle/server/secrets"
)

const (
	// JoinedFile, in the server's folder, contains what a joining server was given. It is written last.
	JoinedFile = "joined.json"
	// joinPause is the pause between requests while no server answers.
	joinPause = 2 * time.Second
)

// RequestOptions are the files and the version of a server that requests to join.
type RequestOptions struct {
	Folders  secrets.Folders
	StoreDir string
	Version  string
	Clock    clock.PassiveClock
	Logger   *slog.Logger
}

// Request is a request to become a server of an existing cluster.
type Request struct {
	// Address is host:port of a server. Token is the cluster's server token.
	Address, Token string
	// NodeName is empty for a server without a node. Password is that node's.
	NodeName, Password string
	Addresses          []netip.Addr
	// Flags are the flags in which all servers have to agree.
	Flags map[string]string
}

// checkFlags refuses flags that differ from a server's. A server of an earlier version sends none.
func (j Request) checkFlags(has map[string]string) error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(has)) {
		if own, known := j.Flags[name]; known && own != has[name] {
			errs = append(errs, fmt.Errorf("--%s: this server has %q, but the one at %s has %q. Set the same value on all servers. Nothing was "+
				"changed on this machine", name, own, j.Address, has[name]))
		}
	}
	return errors.Join(errs...)
}

// Joined is the data that the cluster sent to a server that joined it.
type Joined struct {
	Settings         clusterconfig.Settings `json:"settings"`
	NodePortRange    string                 `json:"nodePortRange"`
	EncryptResources []string               `json:"encryptResources,omitempty"`
	Peers            []string               `json:"peers"`
	// Founder says that this server started the cluster. It wrote this file itself when it admitted the first other
	// server.
	Founder bool `json:"founder,omitempty"`
}

// Join fetches the files that o's folders need before New can make a server of that cluster. It repeats the request
// until a server answers, and may be interrupted at any point. It sends no request once this server has taken part in
// the cluster. It replaces no existing key.
func Join(ctx context.Context, o RequestOptions, j Request) (*Joined, error) {
	joined, err := WasJoined(o.Folders.Server)
	if err != nil {
		return nil, err
	}
	hasStore := false
	if entries, err := os.ReadDir(o.StoreDir); err == nil {
		hasStore = len(entries) > 0
	}
	// Until this server has a store, or knew other servers, the cluster does not know it, and may have other settings
	// by now.
	if joined != nil && (hasStore || roster.HasPeers(o.Folders.Server)) {
		return joined, nil
	}
	if hasStore {
		return nil, fmt.Errorf("there is a store in %s, of a server that started a cluster: it cannot join another one. Nothing was "+
			"changed. Leave out --server to run "+
			"that one, or give another --data-dir", o.StoreDir)
	}
	t, err := token.Parse(j.Token)
	if err != nil {
		return nil, fmt.Errorf("--token: %w", err)
	}
	if t.Role == token.RoleAgent || t.Role == token.RoleBootstrap {
		return nil, errors.New("--token: this is a token for agents; it was not sent. A server joins with the one for servers: `coracle " +
			"token print --server` on a server shows it")
	}
	a, err := requestServerJoin(ctx, o, j, t)
	if err != nil {
		return nil, err
	}
	if err := j.checkFlags(a.Server.Flags); err != nil {
		return nil, err
	}
	if err := o.Folders.Write(a.Server.Files, secrets.AsideSuffix); err != nil {
		return nil, err
	}
	if a.Gossip != nil { // a server of an earlier version sends none
		if err := gossip.WriteKeys(filepath.Join(o.Folders.Server, gossipmember.KeysFile), *a.Gossip); err != nil {
			return nil, err
		}
	}
	if vips := a.Settings.VIPs; len(vips) > 0 {
		if err := clusterconfig.WriteVIPs(o.Folders.Server, vips); err != nil {
			return nil, err
		}
		a.Settings.VIPs = nil // they may change, and have a file of their own
	}
	// it is newer than a back end in this machine's files
	if err := clusterconfig.WriteBackend(o.Folders.Server, a.Settings.Backend()); err != nil {
		return nil, err
	}
	joined = &Joined{Settings: a.Settings, NodePortRange: a.Server.NodePortRange, EncryptResources: a.Server.EncryptResources,
		Peers: a.Server.Peers}
	return joined, writeJoined(filepath.Join(o.Folders.Server, JoinedFile), joined)
}

// renewPatience limits one attempt of Renew.
const renewPatience = 30 * time.Second

// Renew fetches again the files that the cluster replaces at times: encryption keys and tokens. It is for a server that
// has requested to join and is not a member yet. A member follows the store.
func Renew(ctx context.Context, o RequestOptions, j Request) error {
	t, err := token.Parse(j.Token)
	if err != nil {
		return fmt.Errorf("--token: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, renewPatience)
	defer cancel()
	a, err := requestServerJoin(ctx, o, j, t)
	if err != nil {
		return err
	}
	return o.Folders.Write(a.Server.Files, "")
}

func requestServerJoin(ctx context.Context, o RequestOptions, j Request, t token.Token) (*protocol.Response, error) {
	last := ""
	for {
		a, err := protocol.Send(ctx, protocol.Call{Address: j.Address, Token: t, Request: protocol.Request{
			Role: token.RoleServer, Program: o.Version, Time: o.Clock.Now(), Node: protocol.Node{Name: j.NodeName, Addresses: j.Addresses,
				Password: j.Password},
		}})
		var refusal *protocol.Refusal
		switch {
		case err == nil && (a.Server == nil || a.Settings.Validate() != nil):
			return nil, fmt.Errorf("the server at %s sent no keys, or invalid settings", j.Address)
		case err == nil:
			return a, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, protocol.ErrUnreachable), errors.As(err, &refusal) && refusal.Passing():
		default:
			return nil, fmt.Errorf("joining the cluster at %s: %w", j.Address, err)
		}
		if err.Error() != last {
			last = err.Error()
			o.Logger.Warn("the server cannot join yet; retrying", "server", j.Address, "reason", err)
		}
		if !timers.Sleep(ctx, joinPause) {
			return nil, ctx.Err()
		}
	}
}

func readJoined(file string) (*Joined, error) {
	j := &Joined{}
	found, err := atomicfile.ReadJSON(file, j)
	switch {
	case found:
		err = j.Settings.Validate()
	case err == nil:
		return nil, nil
	}
	if err != nil {
		return nil,
			fmt.Errorf("%s is damaged (%w). Nothing was changed: restore it from a backup or from another server's, then start again", file,
				err)
	}
	return j, nil
}

// writeJoined writes the file that readJoined reads.
func writeJoined(file string, j *Joined) error {
	data, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the cluster's settings: %w", err)
	}
	_, err = atomicfile.WriteIfDifferent(file, append(data, '\n'), 0o600)
	return err
}

// WasJoined returns what the cluster sent when the server of this folder joined. It returns nil for a server that
// started a cluster and is alone in it. The file that such a server wrote for another server is removed if the cluster
// has no other server: that one never joined, or has left.
func WasJoined(serverDir string) (*Joined, error) {
	file := filepath.Join(serverDir, JoinedFile)
	j, err := readJoined(file)
	if err != nil || j == nil || !j.Founder {
		return j, err
	}
	others, err := roster.ReadPeerAddresses(serverDir)
	if err != nil || len(others) > 0 {
		return j, err
	}
	if err := os.Remove(file); err != nil {
		return nil, fmt.Errorf("removing the settings that were sent to a server that never joined: %w", err)
	}
	return nil, nil
}
