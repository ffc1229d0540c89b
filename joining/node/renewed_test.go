// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/client-go/util/cert"

	"github.com/coracle-k8s/coracle/joining/node"
	"github.com/coracle-k8s/coracle/joining/protocol"
	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/test/testca"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const day = 24 * time.Hour

// ownServers are servers with an operator's authorities, which end so long from now.
func ownServers(t *testing.T, left time.Duration) (s *servers, authorities string) {
	t.Helper()
	authorities = t.TempDir()
	renewIn(t, authorities, left)
	s = newServersWith(t, authorities)
	testenv.NoError(t, s.pki.RecordRoot())
	return s, authorities
}

func renewIn(t *testing.T, authorities string, left time.Duration) {
	t.Helper()
	for _, name := range pki.Signers() {
		testenv.NoError(t, testca.WriteOwn(authorities, string(name), time.Now().Add(left)))
	}
}

// renew starts the servers again with certificates of the authorities that were renewed with their keys.
func (s *servers) renew(t *testing.T, authorities string) {
	t.Helper()
	s.stop()
	renewIn(t, authorities, 400*day)
	var err error
	s.pki, err = pki.Open(pki.Options{Dir: authorities, Established: true, Logger: slog.New(slog.DiscardHandler)})
	testenv.NoError(t, err)
	s.show(t)
	s.start(s.address)
}

// TestTokenOutlivesItsRoot: a machine joins with a token from before the authorities were renewed, also if their former
// certificates have ended.
func TestTokenOutlivesItsRoot(t *testing.T) {
	for _, left := range []time.Duration{30 * day, -2 * time.Hour} {
		s, authorities := ownServers(t, left)
		before := s.tokens.Agent
		s.renew(t, authorities)
		dir := t.TempDir()
		n := testenv.Must(node.Join(t.Context(), s.options(dir)))(t)
		trusted := testenv.Must(cert.CertsFromFile(n.Credentials.ServerCAFile))(t)
		if len(trusted) != 2 || !trusted[0].NotAfter.After(time.Now().Add(300*day)) || before.VerifyCA(trusted[1]) != nil {
			t.Errorf("%v: the node trusts %d certificates, of which the first ends on %v", left, len(trusted), trusted[0].NotAfter)
		}
		testenv.Must(node.Join(t.Context(), s.options(dir)))(t)
		testenv.True(t, s.joins[len(s.joins)-1].Joined, "%v: a second start does not use the node's certificate", left)
	}
}

// TestNodeTakesRenewedAuthorities: a node that joined before starts again with its own certificate and the password
// that it had, and keeps what it stored. Servers that have the former certificate still do not take the new one away.
func TestNodeTakesRenewedAuthorities(t *testing.T) {
	s, authorities := ownServers(t, 30*day)
	former := s.pki
	dir := t.TempDir()
	n := testenv.Must(node.Join(t.Context(), s.options(dir)))(t)
	trusts := func() string { return string(testenv.Must(os.ReadFile(n.Credentials.ServerCAFile))(t)) }
	testenv.Equal(t, trusts(), string(former.CAPEM(pki.ServerCA)), "before:")
	s.renew(t, authorities)
	state := filepath.Join(dir, "cluster.json")
	before := testenv.Must(os.Stat(state))(t)
	testenv.Must(node.Join(t.Context(), s.options(dir)))(t)
	testenv.True(t, s.joins[len(s.joins)-1].Joined, "it did not join with its certificate")
	testenv.Equal(t, trusts(), string(s.pki.NodesServerCA()), "after:")
	for _, c := range n.Certificates() {
		ends := c.NotAfter.After(time.Now().Add(300 * day))
		testenv.True(t, ends || c.IsCA, "%s still ends with the former authority", c.Name)
	}
	testenv.True(t, os.SameFile(testenv.Must(os.Stat(state))(t), before), "the settings were removed, as those of another cluster")

	s.pki = former // what it gives is signed with the same keys
	testenv.Must(node.Join(t.Context(), s.options(dir)))(t)
	renewed := testenv.Must(pki.Open(pki.Options{Dir: authorities, Logger: slog.New(slog.DiscardHandler)}))(t)
	testenv.Equal(t, trusts(), string(renewed.NodesServerCA()), "after a server that has the former certificate:")
}

// TestRunningNodeRestartsWithRenewedAuthorities: near their end a running node asks for renewed authorities, takes them
// and starts its parts again.
func TestRunningNodeRestartsWithRenewedAuthorities(t *testing.T) {
	s, authorities := ownServers(t, 30*day)
	o := s.options(t.TempDir())
	restarts := make(chan struct{}, 1) // one: Run calls it once
	o.Restart = func() { restarts <- struct{}{} }
	n := testenv.Must(node.Join(t.Context(), o))(t)
	s.renew(t, authorities)
	defer testenv.Run(t, n.Run)()
	select {
	case <-restarts:
	case <-time.After(time.Minute):
		t.Fatal("no restart")
	}
	trusted := testenv.Must(os.ReadFile(n.Credentials.ServerCAFile))(t)
	testenv.Equal(t, string(trusted), string(s.pki.NodesServerCA()), "")
}

// TestForgedRenewalIsRefused: a former root is no secret. Another machine that shows it is no server of the cluster,
// whatever root it shows before.
func TestForgedRenewalIsRefused(t *testing.T) {
	s, _ := ownServers(t, 30*day)
	other := newServers(t)
	former := s.pki.Root().Raw
	for _, chain := range [][][]byte{
		append(other.shown.Certificate[:2:2], former), append(other.shown.Certificate[:1:1], former),
		append(other.shown.Certificate[:1:1], former, former),
	} {
		other.shown.Certificate = chain
		_, err := protocol.Send(t.Context(), protocol.Call{Address: other.address, Token: s.tokens.Agent, Request: protocol.Request{Role: token.RoleAgent}})
		testenv.WantError(t, err, "is no server of a Coracle cluster")
	}
	testenv.Equal(t, len(other.joins), 0, "machines that joined:")
}
