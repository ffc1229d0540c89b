// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A cluster that was made before there was an authority for servers gets one. Where there was one, it is not replaced.
func TestPeerAuthorityOfAnOlderCluster(t *testing.T) {
	dir := t.TempDir()
	p, _ := open(t, dir, today)
	remove := func() {
		t.Helper()
		for _, file := range []string{p.CAFile(PeerCA), p.CAKeyFile(PeerCA)} {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}
	}
	remove()
	o, _ := options(dir, today)
	o.Established = true
	p, err := Open(o)
	if err != nil {
		t.Fatalf("an older cluster: %v", err)
	}
	if err := p.Ensure(p.Peer("one")); err != nil {
		t.Fatal(err)
	}
	verify(t, p, p.Peer("one"), today)
	remove()
	if _, err := Open(o); err == nil || !strings.Contains(err.Error(), "peer-ca.crt is missing") {
		t.Errorf("a lost authority: %v", err)
	}
}

// The authority for servers signs nothing else, so its key may not be another's.
func TestPeerAuthorityIsNoOther(t *testing.T) {
	for _, s := range []Signer{ServerCA, ClientCA, RequestHeaderCA} {
		dir := t.TempDir()
		p, _ := open(t, dir, today)
		for from, to := range map[string]string{p.CAFile(s): p.CAFile(PeerCA), p.CAKeyFile(s): p.CAKeyFile(PeerCA)} {
			data, err := os.ReadFile(from)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(to, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		o, _ := options(dir, today)
		if _, err := Open(o); err == nil || !strings.Contains(err.Error(), filepath.Base(p.CAFile(s))) {
			t.Errorf("%s in its place: %v", s, err)
		}
	}
}
