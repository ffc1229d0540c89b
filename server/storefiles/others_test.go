// SPDX-License-Identifier: Apache-2.0

package storefiles

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/utils/clock"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/raftstore/disk"
	"github.com/coracle-k8s/coracle/server/gossipmember"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/test/echo"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// serving listens with the API server's certificate of a cluster, and returns its address.
// It is valid from about then on.
func serving(t *testing.T, of *Server, from time.Time) string {
	t.Helper()
	keys := testenv.Must(pki.Open(pki.Options{Dir: of.TLSDir, Established: true, Clock: clocktesting.NewFakeClock(from), Logger: slog.New(slog.DiscardHandler)}))(t)
	leaf := keys.APIServer(pki.APIServerNames{NodeName: "s1", Domain: "cluster.local"})
	leaf.Path = filepath.Join(t.TempDir(), "pair.pem")
	testenv.NoError(t, keys.Ensure(leaf))
	pair := testenv.Must(tls.LoadX509KeyPair(leaf.Path, leaf.Path))(t)
	l := testenv.Must(tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{pair}}))(t)
	t.Cleanup(func() { _ = l.Close() })
	go testenv.Accept(l, func(c net.Conn) {
		_ = c.(*tls.Conn).HandshakeContext(t.Context())
		_ = c.Close()
	})
	return l.Addr().String()
}

// TestOtherServersAreAsked: machines of all records are asked, each once. A server of this cluster answers, whatever
// the dates of its certificate, and so does an agent that forwards to one; another cluster's does not. Something at a
// server's address that accepts and keeps silent may be a server that starts; an agent's machine may be that for other
// reasons.
func TestOtherServersAreAsked(t *testing.T) {
	s, foreign, now := newServer(t), newServer(t), time.Now()
	closed := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	testenv.NoError(t, closed.Close())
	addresses := map[string]string{
		"runs": serving(t, s, now), "future": serving(t, s, now.Add(400*24*time.Hour)), "forwards": serving(t, s, now), "foreign": serving(t, foreign, now),
		"mute": echo.Mute(t, "127.0.0.1:0"), "mute-agent": echo.Mute(t, "127.0.0.1:0"), "gone": closed.Addr().String(), "self": "192.0.2.7:6443",
	}
	plan := Plan{}
	for _, name := range []string{"self", "runs", "future", "foreign", "gone"} {
		plan.Members = append(plan.Members, raftstore.Member{Name: name, Address: addresses[name], Voter: true, Self: name == "self"})
	}
	d := testenv.Must(disk.Open(disk.Options{
		Path: s.StoreDir, Identity: disk.Identity{Cluster: "c", Node: "self"}, Logger: slog.New(slog.DiscardHandler), Clock: clock.RealClock{},
	}))(t)
	var peers []disk.Peer
	for _, name := range []string{"mute", "runs", "self"} {
		peers = append(peers, disk.Peer{ID: name, Address: addresses[name]})
	}
	testenv.NoError(t, errors.Join(d.SavePeers(peers), d.Close()))
	var known []map[string]any
	for _, name := range []string{"runs", "forwards", "mute-agent"} {
		known = append(known, map[string]any{"name": name, "address": addresses[name]})
	}
	data := testenv.Must(json.Marshal(known))(t)
	testenv.NoError(t, os.WriteFile(filepath.Join(s.ServerDir, gossipmember.MembersFile), data, 0o600))
	got := map[string]string{}
	for _, o := range s.AskOthers(t.Context(), plan) {
		for name, address := range addresses {
			if o.Address == address {
				got[name] = fmt.Sprintf("%v %s", o.Answers, strings.Join(o.From, " "))
				t.Logf("%s: %+v", name, o)
			}
		}
	}
	for name, want := range map[string]string{
		"runs": "true store PEERS gossip", "future": "true store", "forwards": "true gossip", "foreign": "false store", "mute": "true PEERS",
		"mute-agent": "false gossip", "gone": "false store", "self": "",
	} {
		testenv.Equal(t, got[name], want, "%s:", name)
	}
}
