// SPDX-License-Identifier: Apache-2.0

package status_test

import (
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// servers makes a list from words such as "leader", "voter", "voter!" (which does not answer), "voter?" (whose disk is
// stalled), "voter~" (which does not answer and is alive by the gossip) and "non-voter".
func servers(roles string) []status.ClusterServer {
	var out []status.ClusterServer
	for i, role := range strings.Fields(roles) {
		name, alive := strings.CutSuffix(role, "~")
		name, silent := strings.CutSuffix(name, "!")
		name, stalled := strings.CutSuffix(name, "?")
		out = append(out, status.ClusterServer{Name: string(rune('a' + i)), Role: name, Answers: !silent && !alive, Stalled: stalled, Alive: alive})
	}
	return out
}

func TestStatusSaysWhichFailuresAreSurvived(t *testing.T) {
	for _, c := range []struct{ servers, want, problem string }{
		{"", "not known", ""},
		{"leader", "none: this is the only server", ""},
		{"leader non-voter", "not a, which is the only voter", ""},
		{"leader non-voter!", "not a, which is the only voter", "b: unreachable"},
		{"voter! non-voter", "has no quorum. 0 of 1 voters answer, and 1 are needed", "a: unreachable"},
		{"leader voter voter", "any one server", ""},
		{"voter voter voter", "any one server", "knows no leader"},
		{"leader voter voter!", "no further server: 2 of 3", "c: unreachable"},
		{"leader voter voter! non-voter", "no further server: 2 of 3", "c: unreachable"},
		{"voter voter! voter!", "has no quorum. 1 of 3 voters answer, and 2 are needed", "b, c: unreachable"},
		{"leader voter voter non-voter!", "any one server more", "d: unreachable"},
		{"leader voter voter voter voter", "any 2 servers at the same time", ""},
		{"leader voter voter voter voter!", "any one server more", "e: unreachable"},
		{"leader voter? voter", "no further server: 2 of 3 voters answer and can store", "b: its store's disk"},
		{"leader voter? voter!", "has no quorum. 1 of 3 voters answer and can store, and 2 are needed", "b: its store's disk"},
		{"leader voter voter non-voter?", "any one server more", "d: its store's disk"},
		{"leader voter", "no further server: 2 of 2", ""},
	} {
		words, problems := status.Failures(servers(c.servers))
		if !strings.Contains(words, c.want) || (len(problems) > 0) != (c.problem != "") || !strings.Contains(strings.Join(problems, "\n"), c.problem) {
			t.Errorf("%q: %q, problems %q", c.servers, words, problems)
		}
	}
	for roles, want := range map[string]string{
		"voter voter~ voter~": "1 of 3 voters answer, and 2 are needed. But b, c: alive", "voter voter~ voter!": "But b: alive",
		"voter voter~ voter! voter! voter!": "But b: alive",
	} {
		words, problems := status.Failures(servers(roles))
		all := words + "\n" + strings.Join(problems, "\n")
		testenv.True(t, strings.Contains(words, want) && strings.Contains(words, "Do not recover"), "%s: %q, want %q", roles, words, want)
		testenv.False(t, strings.Contains(all, "coracle store recover") || strings.Contains(all, "member remove"), "%s: bad advice: %q", roles, all)
		testenv.True(t, strings.Contains(all, "b") && strings.Contains(all, "unreachable from this server, but alive"), "%s: %q", roles, all)
	}
	if words, problems := status.Failures(servers("leader voter voter~")); words != "no further server: 2 of 3 voters answer, and 2 are needed" ||
		len(problems) != 1 || strings.Contains(problems[0], "coracle member remove") {
		t.Errorf("a server that is alive and does not answer: %q, problems %q", words, problems)
	}
	cut := servers("voter leader! voter")
	cut[1].ReachedBy = []string{"c"}
	if words, problems := status.Failures(cut); words != "any one server" || len(problems) != 1 || !strings.Contains(problems[0],
		"c can reach it") || strings.Contains(problems[0], "remove") {
		t.Errorf("a link that is cut: %q, problems %q", words, problems)
	}
	full := servers("leader voter voter")
	full[1].Full = true
	if _, problems := status.Failures(full); len(problems) != 1 || !strings.Contains(problems[0], "b: the disk") {
		t.Errorf("a full disk: %q", problems)
	}
	for _, reason := range []string{"disk_full", "disk_failing", "quota"} {
		refusing := servers("leader voter voter")
		refusing[0].Refusing = reason
		if _, problems := status.Failures(refusing); len(problems) != 1 || !strings.Contains(problems[0], "a: writes are refused") {
			t.Errorf("%s: %q", reason, problems)
		}
		refusing[0].Self = true // the line of the store says it
		if _, problems := status.Failures(refusing); len(problems) != 0 {
			t.Errorf("%s on the server that reports: %q", reason, problems)
		}
	}
}
