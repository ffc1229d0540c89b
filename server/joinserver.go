// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/gossip"
	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/version"
	"github.com/coracle-k8s/coracle/joining/protocol"
	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/server/encryption"
	"github.com/coracle-k8s/coracle/server/joining"
	"github.com/coracle-k8s/coracle/server/membership"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/server/roster"
)

const (
	// maxServers is how many a cluster may have.
	maxServers = 7
	// joinPause is how long to wait between questions that nobody answers.
	joinPause = 2 * time.Second
	// joinedFile says, in the server's folder, what a server that joined was told. It is written last.
	joinedFile = "joined.json"
)

// admitServer gives a machine that becomes a server the cluster's secrets.
func (a *admission) admitServer(ctx context.Context, m joining.Machine) (*protocol.Answer, error) {
	client, err := a.api()
	if err != nil {
		return nil, err
	}
	members := a.s.store.Load().Members()
	if len(members) >= maxServers {
		return nil, protocol.Refuse(protocol.CodeRequest, "the cluster has %d servers, and more than %d make every write slower and nothing safer. Join as an agent, or "+
			"remove a server that is gone", len(members), maxServers)
	}
	if m.Node.Name != "" {
		before, err := addressesBefore(ctx, client, m.Node.Name)
		if err != nil {
			return nil, err
		}
		if err := a.checkNode(m.Node, before); err != nil {
			return nil, err
		}
		if err := a.claimName(ctx, client, m); err != nil {
			return nil, err
		}
	}
	settings, err := a.settings(ctx, client)
	if err != nil {
		return nil, err
	}
	release, err := encryption.HoldStill(a.s.o.CredDir) // while the files are read; admitMember compares them later
	if err != nil {
		return nil, protocol.Refuse(protocol.CodeBusy, "%v", err)
	}
	defer release()
	// From now on this server's settings are the cluster's too, and not its own to change, unless the other never
	// comes.
	own := &Joined{Founder: true, Settings: settings, NodePortRange: a.s.o.NodePortRange, EncryptResources: a.s.o.EncryptResources}
	if file := filepath.Join(a.s.o.ServerDir, joinedFile); !fileExists(file) {
		if err := writeJoined(file, own); err != nil {
			return nil, err
		}
	}
	out := &protocol.Answer{ServerCA: a.s.pki.CAPEM(pki.ServerCA), ClientCA: a.s.pki.CAPEM(pki.ClientCA), Settings: settings}
	out.Settings.VIPs = a.s.vips.Kept()
	out.Gossip = a.s.membership.Keys()
	out.Server = &protocol.Server{Files: map[string][]byte{}, NodePortRange: a.s.o.NodePortRange, EncryptResources: a.s.o.EncryptResources,
		FormerKubeletCA: a.s.pki.FormerKubeletCA()}
	required, optional := commonFiles()
	for _, name := range slices.Concat(required, optional) {
		if strings.HasPrefix(filepath.Base(name), string(pki.KubeletCA)) && !a.s.pki.OwnKubeletCA() {
			continue
		}
		data, err := os.ReadFile(a.s.o.path(name))
		if errors.Is(err, fs.ErrNotExist) && slices.Contains(optional, name) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading the cluster's keys: %w", err)
		}
		out.Server.Files[name] = data
	}
	for _, m := range members {
		out.Server.Peers = append(out.Server.Peers, m.Address)
	}
	return out, nil
}

// addressesBefore are those of the server's node whose name a server wants that joins: a machine that was wiped is
// mostly where it was, and its former self is a member still. Whether it may have that name is another question
// (claimName): not while that node is alive.
func addressesBefore(ctx context.Context, client kubernetes.Interface, name string) ([]netip.Addr, error) {
	n, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking for the node %s: %w", name, err)
	}
	var out []netip.Addr
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil && roster.IsServer(n) {
			out = append(out, ip.Unmap())
		}
	}
	return out, nil
}

// hashSince is the protocol from which on every server says with which keys it comes (internal/version): one that says
// nothing is of an earlier one, and is let in as long as this program and that one can be in one cluster.
const hashSince = 2

// mayComeWithout says whether a server may be let in that does not say with which keys it comes.
func mayComeWithout(understands func(protocol int) bool) bool { return understands(hashSince - 1) }

// share stands for the keys that encrypt Secrets, for the server that takes this one into the store.
func (s *Server) share() string {
	print, err := encryption.Fingerprint(s.o.CredDir)
	switch {
	case err != nil:
		s.log.Error("the encryption keys cannot be compared with the other servers'", "error", err)
		return "unreadable" // which no server has
	case print == "":
		return "none" // nothing is what earlier versions say
	}
	return print
}

// admitMember refuses a server as a member that has other encryption keys than this one: they may have been replaced
// after it got its own. Until release is called they are not, and the next replacement knows of the new member.
func (s *Server) admitMember(share string) (release func(), err error) {
	still, err := encryption.HoldStill(s.o.CredDir)
	if err != nil {
		return nil, err
	}
	switch own := s.share(); {
	case share == "" && !mayComeWithout(version.Understands):
		still()
		return nil, fmt.Errorf("it does not say with which keys it encrypts Secrets, as every server does from protocol %d on: update coracle there", hashSince)
	case share != "" && share != own:
		still()
		return nil, fmt.Errorf("%w: the key that encrypts Secrets is another one than that which this server got when it asked to join, since it was replaced meanwhile. It fetches the "+
			"present one by itself, with its --server and --token. If it cannot, nothing is lost: stop it, remove the folder server in its data directory, and start it again, so that it joins anew", raftstore.ErrShare)
	}
	return func() {
		defer still()
		s.roster.SavePeers()
	}, nil
}

// Joining is what a machine needs to become a server of a cluster that there is.
type Joining struct {
	// Address is host:port of a server, Token its server token.
	Address, Token string
	// NodeName is empty for a server without a node; Password is that node's.
	NodeName, Password string
	Addresses          []netip.Addr
}

// Joined is what the cluster told a server that joined it.
type Joined struct {
	Settings         clusterconfig.Settings `json:"settings"`
	NodePortRange    string                 `json:"nodePortRange"`
	EncryptResources []string               `json:"encryptResources,omitempty"`
	Peers            []string               `json:"peers"`
	// Founder says that this server started the cluster: it wrote this down itself when it let the first other one in.
	Founder bool `json:"founder,omitempty"`
}

// Join fetches what o's folders need to hold before New can make a server of a cluster of them. It asks until a server
// answers, may be interrupted at any point, and asks nobody once this server has taken part in the cluster. No key that
// was there is replaced.
func Join(ctx context.Context, o Options, j Joining) (*Joined, error) {
	o.setDefaults()
	joined, err := WasJoined(o.ServerDir)
	if err != nil {
		return nil, err
	}
	hasStore := false
	if entries, err := os.ReadDir(o.StoreDir); err == nil {
		hasStore = len(entries) > 0
	}
	// Until it has a store, or knew other servers, the cluster does not know of it, and may have other settings by now.
	if joined != nil && (hasStore || roster.HasPeers(o.ServerDir)) {
		return joined, nil
	}
	if hasStore {
		return nil, fmt.Errorf("there is a store in %s, of a server that started a cluster: it cannot join another one. Nothing was changed. Leave out --server to run "+
			"that one, or give another --data-dir", o.StoreDir)
	}
	t, err := token.Parse(j.Token)
	if err != nil {
		return nil, fmt.Errorf("--token: %w", err)
	}
	if t.Role == token.RoleAgent || t.Role == token.RoleBootstrap {
		return nil, errors.New("--token: this is a token for agents; it was not sent. A server joins with the one for servers: `coracle token print --server` on a server shows it")
	}
	a, err := askToServe(ctx, o, j, t)
	if err != nil {
		return nil, err
	}
	if err := keepFiles(&o, a.Server.Files, asideSuffix); err != nil {
		return nil, err
	}
	if err := pki.KeepFormerKubeletCA(o.TLSDir, a.Server.FormerKubeletCA); err != nil {
		return nil, err
	}
	if a.Gossip != nil { // none from a server of an earlier version
		if err := gossip.WriteKeys(filepath.Join(o.ServerDir, membership.KeysFile), *a.Gossip); err != nil {
			return nil, err
		}
	}
	if vips := a.Settings.VIPs; len(vips) > 0 {
		if err := clusterconfig.WriteVIPs(o.ServerDir, vips); err != nil {
			return nil, err
		}
		a.Settings.VIPs = nil // they may change, and have a file of their own
	}
	if err := clusterconfig.WriteBackend(o.ServerDir, a.Settings.Backend()); err != nil { // it is newer than what this machine may know from before
		return nil, err
	}
	joined = &Joined{Settings: a.Settings, NodePortRange: a.Server.NodePortRange, EncryptResources: a.Server.EncryptResources, Peers: a.Server.Peers}
	return joined, writeJoined(filepath.Join(o.ServerDir, joinedFile), joined)
}

// renewPatience bounds one try to get what was replaced anew.
const renewPatience = 30 * time.Second

// Renew fetches anew what the cluster replaces at times and this server got when it asked to join: encryption keys and
// tokens. It is for a server that the others have not taken in yet; a member follows the store.
func Renew(ctx context.Context, o Options, j Joining) error {
	o.setDefaults()
	t, err := token.Parse(j.Token)
	if err != nil {
		return fmt.Errorf("--token: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, renewPatience)
	defer cancel()
	a, err := askToServe(ctx, o, j, t)
	if err != nil {
		return err
	}
	return keepFiles(&o, a.Server.Files, "")
}

func askToServe(ctx context.Context, o Options, j Joining, t token.Token) (*protocol.Answer, error) {
	last := ""
	for {
		a, err := protocol.Ask(ctx, protocol.Question{Address: j.Address, Token: t, Request: protocol.Request{
			Role: token.RoleServer, Program: o.Version, Time: o.Clock.Now(), Node: protocol.Node{Name: j.NodeName, Addresses: j.Addresses, Password: j.Password},
		}})
		var refusal *protocol.Refusal
		switch {
		case err == nil && (a.Server == nil || a.Settings.Validate() != nil):
			return nil, fmt.Errorf("the server at %s gave no keys, or settings that do not work", j.Address)
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
			o.Logger.Warn("the server cannot join yet; it is tried again", "server", j.Address, "reason", err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(joinPause):
		}
	}
}

func readJoined(file string) (*Joined, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading what the cluster said when this server joined: %w", err)
	}
	j := &Joined{}
	err = json.Unmarshal(data, j)
	if err == nil {
		err = j.Settings.Validate()
	}
	if err != nil {
		return nil, fmt.Errorf("%s is damaged (%w). Nothing was changed: restore it from a backup or from another server's, then start again", file, err)
	}
	return j, nil
}

func writeJoined(file string, j *Joined) error {
	data, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding what the cluster said: %w", err)
	}
	_, err = atomicfile.WriteIfDifferent(file, append(data, '\n'), 0o600)
	return err
}

// WasJoined returns what the cluster said when the server of this folder joined; nil when it started one and is alone
// in it. What such a one wrote down for another server is removed when that is none of the cluster: it never came, or
// has left.
func WasJoined(serverDir string) (*Joined, error) {
	file := filepath.Join(serverDir, joinedFile)
	j, err := readJoined(file)
	if err != nil || j == nil || !j.Founder {
		return j, err
	}
	others, err := roster.OtherServers(serverDir)
	if err != nil || len(others) > 0 {
		return j, err
	}
	if err := os.Remove(file); err != nil {
		return nil, fmt.Errorf("forgetting what was said to a server that never came: %w", err)
	}
	return nil, nil
}
