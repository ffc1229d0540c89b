// SPDX-License-Identifier: Apache-2.0

package config

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestEverySettingIsDescribed(t *testing.T) {
	seen := map[string]bool{}
	for i := range table {
		s := &table[i]
		for _, key := range []string{s.Name, s.EnvName()} {
			testenv.False(t, seen[key], "%s is in the table twice", key)
			seen[key] = true
		}
		if s.Help == "" || strings.HasSuffix(s.Help, ".") || s.Group == "" || s.Commands == 0 {
			t.Errorf("--%s lacks help, group or command, or its help ends with a full stop", s.Name)
		}
		differs := []string{"network-backend", "load-balancer-reserved-ports"} // compared elsewhere, and not compared
		if (s.Value != nil) != (s.Scope != PerMachine && !slices.Contains(differs, s.Name)) {
			t.Errorf("--%s needs a Value if all servers have to agree, and none if it is one machine's", s.Name)
		}
		if s.Kind != Bool && s.Holder == "" {
			t.Errorf("--%s has a value but no name for it", s.Name)
		}
	}
}

// TestEverySettingIsRead guards against a row of the table that nothing looks at: a flag that does nothing.
func TestEverySettingIsRead(t *testing.T) {
	read := map[string]bool{"config": true}
	for _, f := range []string{"server.go", "agent.go", "node.go", "snapshots.go", "ingress.go", "acme.go", "console.go"} {
		text := testenv.Must(os.ReadFile(f))(t)
		for _, s := range Table(nodeCommands) {
			if strings.Contains(string(text), `"`+s.Name+`"`) {
				read[s.Name] = true
			}
		}
	}
	for _, s := range Table(nodeCommands) {
		testenv.False(t, !read[s.Name], "--%s is in the table, but nothing reads it", s.Name)
	}
}

func TestNearestFlagIsSuggested(t *testing.T) {
	candidates := settingNames(Table(ServerCommand))
	for typed, want := range map[string]string{
		"cluster-cdir": "cluster-cidr", "clustercidr": "cluster-cidr", "kubelet_arg": "kubelet-arg", "data": "data-dir",
		"tls-sans": "tls-san", "x": "", "zzzzzzzzzz": "", "kube-api-server-arg": "kube-apiserver-arg", "TOKEN": "token",
	} {
		testenv.Equal(t, Nearest(typed, candidates), want, "%q:", typed)
	}
}

func TestPermanentAddressesPrecedeTemporaryOnes(t *testing.T) {
	a, b, c := netip.MustParseAddr("2001:db8::a"), netip.MustParseAddr("2001:db8::b"), netip.MustParseAddr("192.0.2.1")
	got := lastingFirst([]netip.Addr{a, b, c}, map[netip.Addr]bool{a: true})
	testenv.EqualSlices(t, got, []netip.Addr{b, c, a}, "")
}
