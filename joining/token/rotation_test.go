// SPDX-License-Identifier: Apache-2.0

package token_test

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestRotateReplacesOneSecret(t *testing.T) {
	hash, other := strings.Repeat("a", 64), strings.Repeat("b", 64)
	s := token.Set{Server: token.Token{CAHash: hash, Role: token.RoleServer, Secret: "server-now"}, Agent: token.Token{CAHash: hash,
		Role: token.RoleAgent, Secret: "agent-now"}}
	for _, tt := range []struct{ role, old, new, want string }{
		{"server", "", "next", "next"},
		{"server", "server-now", "next", "next"},
		{"server", s.Server.String(), token.Token{CAHash: hash, Role: token.RoleServer, Secret: "next"}.String(), "next"},
		{"agent", s.Agent.String(), "next", "next"},
		{"server", "wrong", "next", "not the cluster's token"},
		{"server", s.Agent.String(), "next", "not the cluster's token"},
		{"agent", token.Token{CAHash: other, Role: token.RoleAgent, Secret: "agent-now"}.String(), "next", "not the cluster's token"},
		{"server", "", "server-now", "present token"},
		{"server", "", "agent-now", "cannot be the same"},
		{"server", "", token.Token{CAHash: hash, Role: token.RoleAgent, Secret: "next"}.String(), "for the role"},
		{"server", "", token.Token{CAHash: other, Role: token.RoleServer, Secret: "next"}.String(), "another cluster"},
		{"server", "", "abcdef.0123456789abcdef", "expires"},
		{"server", "", "a b", "--new-token"},
	} {
		next, err := token.RotationRequest{Role: token.Role(tt.role), Old: tt.old, New: tt.new}.Next(s)
		printed := next.Secret
		if err != nil {
			printed = err.Error()
		} else if next.Role != token.Role(tt.role) || next.CAHash != hash {
			t.Errorf("%+v: %+v", tt, next)
		}
		testenv.Contains(t, printed, tt.want, "%+v:", tt)
	}
	testenv.Equal(t, len(testenv.Must(token.RotationRequest{Role: token.RoleServer}.Next(s))(t).Secret), 32, "")
}

func TestFormerTokenIsAcceptedUntilItExpires(t *testing.T) {
	now := time.Now()
	former := token.Token{Role: token.RoleServer, Secret: "old"}
	s := token.Set{Server: token.Token{Role: token.RoleServer, Secret: "a"}, Agent: token.Token{Role: token.RoleAgent, Secret: "b"},
		Former: []token.Former{{Token: former, Until: now.Add(time.Hour)}}}
	for after, want := range map[time.Duration]int{0: 3, time.Hour - 1: 3, time.Hour: 2} {
		testenv.Equal(t, len(s.Accepted(now.Add(after))), want, "after %s:", after)
	}
}

// TestKeptTokensAreRead: what was kept is read, and node-token follows.
func TestKeptTokensAreRead(t *testing.T) {
	hash, dir := strings.Repeat("a", 64), t.TempDir()
	s := token.Set{Server: token.Token{CAHash: hash, Role: token.RoleServer, Secret: "a"}, Agent: token.Token{CAHash: hash,
		Role: token.RoleAgent, Secret: "b"}}
	for range 2 {
		testenv.NoError(t, token.Save(dir, s))
		if got, err := token.Read(dir); err != nil || !reflect.DeepEqual(got, s) {
			t.Errorf("%+v, %v", got, err)
		}
		s.Agent.Secret = "c"
	}
}
