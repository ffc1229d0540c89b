// SPDX-License-Identifier: Apache-2.0

package balancer_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/coracle-k8s/coracle/agent/balancer"
	"github.com/coracle-k8s/coracle/test/echo"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestFormerServersAreKept: behind those that live, and not without end.
func TestFormerServersAreKept(t *testing.T) {
	b := balancer.Start(t, balancer.Options{Server: "127.0.0.1:1"})
	for i := range 3 * balancer.Most {
		testenv.NoError(t, b.Set([]string{fmt.Sprintf("127.0.0.1:%d", 100+i), "127.0.0.1:99"}))
	}
	got := b.Servers()
	if len(got) != balancer.Most || got[1] != fmt.Sprintf("127.0.0.1:%d", 99+3*balancer.Most) || !slices.Contains(got, "127.0.0.1:1") || !slices.Contains(got, "127.0.0.1:99") {
		t.Errorf("%v", got)
	}
}

// However many servers are named, the one in use and the one that the operator named are kept.
func TestLongListsKeepServerInUseAndNamedServer(t *testing.T) {
	one, two := echo.New(t, "one", "127.0.0.1:0"), echo.New(t, "two", "127.0.0.1:0")
	b := balancer.Start(t, balancer.Options{Server: one.Address})
	testenv.NoError(t, b.Set([]string{two.Address}))
	one.Stop()
	balancer.WantAnswer(t, b, "two")
	var invented []string
	for i := range 3 * balancer.Most {
		invented = append(invented, fmt.Sprintf("192.0.2.%d:6443", i+1))
	}
	testenv.NoError(t, b.Set(invented))
	if known := b.Servers(); len(known) > balancer.Most || known[0] != two.Address || !slices.Contains(known, one.Address) {
		t.Errorf("%d are known: %q", len(known), known)
	}
	balancer.WantAnswer(t, b, "two")
}

// TestServerListSurvivesRestart: a later start knows the servers, also when the one that was named is gone.
func TestServerListSurvivesRestart(t *testing.T) {
	gone, two := echo.New(t, "gone", "127.0.0.1:0"), echo.New(t, "two", "127.0.0.1:0")
	gone.Stop()
	file := filepath.Join(t.TempDir(), "servers.json")
	first := balancer.Start(t, balancer.Options{Server: gone.Address, File: file})
	testenv.NoError(t, first.Set([]string{two.Address}))
	b := balancer.Start(t, balancer.Options{Server: gone.Address, File: file})
	balancer.WantAnswer(t, b, "two")
	if got, want := b.Servers(), []string{two.Address, gone.Address}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestStoredServerListIsBounded: what is in the file is no more than a Balancer would have kept.
func TestStoredServerListIsBounded(t *testing.T) {
	var many []string
	for i := range 3000 {
		many = append(many, fmt.Sprintf("192.0.2.1:%d", i+1))
	}
	for n, want := range map[int]int{100: balancer.Most, 3000: balancer.Most, len(many) * 100: 1} {
		var list []string
		for len(list) < n {
			list = append(list, many...)
		}
		data := testenv.Must(json.Marshal(list[:n]))(t)
		file := filepath.Join(t.TempDir(), "servers.json")
		testenv.NoError(t, os.WriteFile(file, data, 0o600))
		if got := balancer.Start(t, balancer.Options{Server: "127.0.0.1:1", File: file}).Servers(); len(got) > want || got[0] != "127.0.0.1:1" {
			t.Errorf("of %d in the file: %d, %q first, want %d", n, len(got), got[0], want)
		}
	}
}

// TestDamagedListFallsBackToNamedServer: whatever is in the file, the server that the operator named is used.
func TestDamagedListFallsBackToNamedServer(t *testing.T) {
	one := echo.New(t, "one", "127.0.0.1:0")
	for _, text := range []string{"", "null", "[", `[""]`, `["x",null]`, `{"a":1}`, `["no address","[::1","300.0.0.1:5","127.0.0.1:0","[fe80::1%nowhere]:6443","127.0.0.1:70000",":"]`, "\x00\x00"} {
		file := filepath.Join(t.TempDir(), "servers.json")
		testenv.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		b := balancer.Start(t, balancer.Options{Server: one.Address, File: file})
		balancer.WantAnswer(t, b, "one")
		testenv.Check(t, b.Set([]string{one.Address}), "%q", text)
		if got := b.Servers(); !slices.Contains(got, one.Address) {
			t.Errorf("%q: %q", text, got)
		}
	}
}
