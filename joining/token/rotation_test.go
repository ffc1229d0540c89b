// SPDX-License-Identifier: Apache-2.0

package token

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestRotateReplacesOneSecret(t *testing.T) {
	hash, other := strings.Repeat("a", 64), strings.Repeat("b", 64)
	s := Set{Server: Token{CAHash: hash, Role: RoleServer, Secret: "server-now"}, Agent: Token{CAHash: hash, Role: RoleAgent, Secret: "agent-now"}}
	for _, tt := range []struct{ role, old, new, want string }{
		{"server", "", "next", "next"},
		{"server", "server-now", "next", "next"},
		{"server", s.Server.String(), Token{CAHash: hash, Role: RoleServer, Secret: "next"}.String(), "next"},
		{"agent", s.Agent.String(), "next", "next"},
		{"server", "wrong", "next", "not the cluster's token"},
		{"server", s.Agent.String(), "next", "not the cluster's token"},
		{"agent", Token{CAHash: other, Role: RoleAgent, Secret: "agent-now"}.String(), "next", "not the cluster's token"},
		{"server", "", "server-now", "works now"},
		{"server", "", "agent-now", "cannot be the same"},
		{"server", "", Token{CAHash: hash, Role: RoleAgent, Secret: "next"}.String(), "for the role"},
		{"server", "", Token{CAHash: other, Role: RoleServer, Secret: "next"}.String(), "another cluster"},
		{"server", "", "abcdef.0123456789abcdef", "expires"},
		{"server", "", "a b", "--new-token"},
	} {
		next, err := RotationRequest{Role: Role(tt.role), Old: tt.old, New: tt.new}.Next(s)
		printed := next.Secret
		if err != nil {
			printed = err.Error()
		} else if next.Role != Role(tt.role) || next.CAHash != hash {
			t.Errorf("%+v: %+v", tt, next)
		}
		testenv.Contains(t, printed, tt.want, "%+v:", tt)
	}
	testenv.Equal(t, len(testenv.Must(RotationRequest{Role: RoleServer}.Next(s))(t).Secret), 32, "")
}

func TestFormerTokenIsAcceptedUntilItExpires(t *testing.T) {
	now := time.Now()
	former := Token{Role: RoleServer, Secret: "old"}
	s := Set{Server: Token{Role: RoleServer, Secret: "a"}, Agent: Token{Role: RoleAgent, Secret: "b"}, Former: []Former{{Token: former, Until: now.Add(time.Hour)}}}
	for after, want := range map[time.Duration]int{0: 3, time.Hour - 1: 3, time.Hour: 2} {
		testenv.Equal(t, len(s.Accepted(now.Add(after))), want, "after %s:", after)
	}
}

// TestKeptTokensAreRead: what was kept is read, and node-token follows.
func TestKeptTokensAreRead(t *testing.T) {
	hash, dir := strings.Repeat("a", 64), t.TempDir()
	s := Set{Server: Token{CAHash: hash, Role: RoleServer, Secret: "a"}, Agent: Token{CAHash: hash, Role: RoleAgent, Secret: "b"}}
	for range 2 {
		testenv.NoError(t, Save(dir, s))
		if got, err := Read(dir); err != nil || !reflect.DeepEqual(got, s) {
			t.Errorf("%+v, %v", got, err)
		}
		s.Agent.Secret = "c"
	}
}
