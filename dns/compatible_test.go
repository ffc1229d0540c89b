// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// wantNotUsed waits until the status line names these sections with these reasons, and no others.
func wantNotUsed(t *testing.T, board *status.Board, want map[string]string) {
	t.Helper()
	testenv.Eventually(t, 2*time.Minute, "the status line", func() error {
		line := status.Component{State: status.Running}
		for _, c := range board.Components() {
			if c.Name == partCustom {
				line = c
			}
		}
		if (line.State == status.Degraded) != (len(want) > 0) {
			return fmt.Errorf("the line is %+v", line)
		}
		for name, why := range want {
			if _, after, ok := strings.Cut(line.Message, name+": "); !ok || !strings.Contains(after, why) {
				return fmt.Errorf("%s is not named with %q: %s", name, why, line.Message)
			}
		}
		if n := strings.Count(line.Message, ".override: ") + strings.Count(line.Message, ".server: "); n != len(want) {
			return fmt.Errorf("%d sections are named: %s", n, line.Message)
		}
		return nil
	})
}

// eachStart runs a test with a server that gets the configuration while it runs, and again with one that starts with
// it.
func eachStart(t *testing.T, change func(*Options), data map[string]string, test func(t *testing.T, a *api, board *status.Board)) {
	t.Helper()
	netns.Require(t)
	a := newAPI(t)
	a.namespace(t, "default")
	a.service(t, "web", "10.43.0.9")
	outside(t, "127.0.0.53:53", "192.0.2.53")
	outside(t, "127.0.0.54:53", "192.0.2.54")
	for _, name := range []string{"while it runs", "after a restart"} {
		t.Run(name, func(t *testing.T) {
			board := status.NewBoard(time.Now)
			if name == "after a restart" {
				a.custom(data)
			}
			run(t, a, func(o *Options) {
				o.Board = board
				write(t, o.ResolvConf, "nameserver 127.0.0.53\n")
				if change != nil {
					change(o)
				}
			})
			wantAnswer(t, "web.default.svc.cluster.local", dns.TypeA, "10.43.0.9")
			a.custom(data)
			test(t, a, board)
			wantAnswer(t, "web.default.svc.cluster.local", dns.TypeA, "10.43.0.9")
		})
	}
}

// TestSectionsNeverShareALine: keys and a node's file that have the same directive in lines of the same number all
// apply.
func TestSectionsNeverShareALine(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.override"), "rewrite name file.example web.default.svc.cluster.local")
	eachStart(t, func(o *Options) { o.ImportDir = dir }, map[string]string{
		"a.override": "rewrite name one.example web.default.svc.cluster.local",
		"b.override": "rewrite name two.example web.default.svc.cluster.local",
		"c.override": "forward one.test 127.0.0.54",
		"d.override": "forward two.test 127.0.0.54",
		"e.override": "log",
		"f.override": "log",
		"g.server":   "three.test { \n forward . 127.0.0.54 \n}",
		"h.server":   "four.test { \n forward . 127.0.0.54 \n}",
	}, func(t *testing.T, _ *api, board *status.Board) {
		for _, name := range []string{"file.example", "one.example", "two.example"} {
			wantAnswer(t, name, dns.TypeA, "10.43.0.9")
		}
		for _, zone := range []string{"one", "two", "three", "four"} {
			wantAnswer(t, "x."+zone+".test", dns.TypeA, "192.0.2.54")
		}
		wantAnswer(t, "x.example.org", dns.TypeA, "192.0.2.53")
		wantNotUsed(t, board, nil)
	})
}

// TestConflictingSectionsLeaveTheOthers: what cannot apply beside the sections before it is left out and named, by the
// order of the names and not by which came first. All others apply.
func TestConflictingSectionsLeaveTheOthers(t *testing.T) {
	taken := make(chan net.Listener, 1)
	eachStart(t, func(*Options) {
		if len(taken) == 0 {
			taken <- testenv.Must(net.Listen("tcp", "127.0.0.1:5353"))(t)
			t.Cleanup(func() { testenv.Check(t, (<-taken).Close()) })
		}
	}, map[string]string{
		"one.override":   "hosts {\n 192.0.2.1 one.example\n fallthrough\n}",
		"two.override":   "hosts {\n 192.0.2.2 two.example\n fallthrough\n}",
		"cache.override": "cache 10",
		"dup.override":   "cache 20",
		"main.server":    ".:53 {\n hosts {\n 192.0.2.3 x\n }\n}",
		"a.server":       "twice:53 {\n hosts {\n 192.0.2.4 x.twice\n }\n}",
		"b.server":       "twice {\n hosts {\n 192.0.2.5 x.twice\n }\n}",
		"absent.server":  "absent {\n bind 192.0.2.200\n hosts\n}",
		"taken.server":   "taken:5353 {\n bind 127.0.0.1\n hosts\n}",
		"wrong.override": "no-such-plugin",
		"lab.server":     "lab {\n forward . 127.0.0.54\n}",
	}, func(t *testing.T, a *api, board *status.Board) {
		wantAnswer(t, "one.example", dns.TypeA, "192.0.2.1")
		wantAnswer(t, "x.twice", dns.TypeA, "192.0.2.4")
		wantAnswer(t, "x.lab", dns.TypeA, "192.0.2.54")
		refused := map[string]string{
			"two.override": "once per Server Block", "dup.override": "once per Server Block", "main.server": "already defined",
			"b.server": "already defined", "absent.server": "192.0.2.200", "taken.server": "127.0.0.1:5353", "wrong.override": "no-such-plugin",
		}
		wantNotUsed(t, board, refused)
		testenv.Eventually(t, 2*time.Minute, "an event for each key", func() error {
			all := strings.Join(a.served(), "\n")
			for name := range refused {
				if !strings.Contains(all, "the key "+name+" is not used") {
					return errors.New("none about " + name)
				}
			}
			return nil
		})
		a.custom(map[string]string{"two.override": "hosts {\n 192.0.2.2 two.example\n fallthrough\n}"})
		wantAnswer(t, "two.example", dns.TypeA, "192.0.2.2")
		wantNotUsed(t, board, nil)
	})
}
