// SPDX-License-Identifier: Apache-2.0

package netbackend

import (
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestServerRemembersTheBackend: a server remembers what the cluster said last, whatever it was started with, and tells
// it to machines that join where the ConfigMap says nothing that makes sense.
func TestServerRemembersTheBackend(t *testing.T) {
	const vxlan, hostGW, wireguard, none = clusterconfig.NetworkVXLAN, clusterconfig.NetworkHostGateway, clusterconfig.NetworkWireGuard, clusterconfig.NetworkNone
	for name, c := range map[string]struct {
		own     string
		setting []string
		kept    string // in the file
		want    string // where the ConfigMap has what was said last
	}{
		"nothing is said":            {vxlan, nil, "", vxlan},
		"as it was started":          {vxlan, []string{vxlan}, vxlan, vxlan},
		"changed":                    {vxlan, []string{vxlan, hostGW}, hostGW, hostGW},
		"changed twice":              {vxlan, []string{hostGW, wireguard}, wireguard, wireguard},
		"nonsense at first":          {vxlan, []string{"pigeons"}, "", vxlan},
		"nonsense after a change":    {vxlan, []string{hostGW, "pigeons"}, hostGW, hostGW},
		"deleted after a change":     {vxlan, []string{hostGW, ""}, hostGW, hostGW},
		"none, by hand":              {vxlan, []string{hostGW, none}, hostGW, hostGW},
		"another plugin's":           {none, []string{none}, "", none},
		"another plugin's, and said": {none, []string{vxlan}, "", none},
	} {
		t.Run(name, func(t *testing.T) {
			dir, last := t.TempDir(), ""
			k := testenv.Must(New(Options{Dir: dir, Configured: c.own, Logger: slog.New(slog.DiscardHandler)}))(t)
			for _, last = range c.setting {
				k.apply(last)
			}
			testenv.Equal(t, clusterconfig.ReadBackend(dir), c.kept, "it keeps")
			if last := k.Last(); last != c.kept {
				t.Errorf("it heard %q last, want %q", last, c.kept)
			}
			testenv.Equal(t, k.ForJoining(c.own, last), c.want, "a joining machine gets")
		})
	}
}

// TestOtherPluginRemovesTheBackend: a server that gives the pod network to another plugin keeps nothing of before,
// which it would go by when it takes the network back.
func TestOtherPluginRemovesTheBackend(t *testing.T) {
	dir := t.TempDir()
	testenv.NoError(t, clusterconfig.WriteBackend(dir, clusterconfig.NetworkWireGuard))
	if _, err := New(Options{Dir: dir, Configured: clusterconfig.NetworkNone}); err != nil || clusterconfig.ReadBackend(dir) != "" {
		t.Errorf("%v, it keeps %q", err, clusterconfig.ReadBackend(dir))
	}
}

// TestLastOfEarlierRun: a server that starts knows what the cluster said last before it hears it again.
func TestLastOfEarlierRun(t *testing.T) {
	dir := t.TempDir()
	testenv.NoError(t, clusterconfig.WriteBackend(dir, clusterconfig.NetworkWireGuard))
	k, err := New(Options{Dir: dir, Configured: clusterconfig.NetworkVXLAN})
	testenv.False(t, err != nil || k.Last() != clusterconfig.NetworkWireGuard, "%v, it knows %q", err, k.Last())
	var disabled *Setting
	testenv.Equal(t, disabled.Last(), "", "none is known")
}

// TestOutdatedBackendFlagIsReported: a server that runs says that it would not start any more with its flag, until that
// is the cluster's again.
func TestOutdatedBackendFlagIsReported(t *testing.T) {
	var log testenv.Log
	board := status.NewBoard(time.Now)
	k := testenv.Must(New(Options{Dir: t.TempDir(), Configured: clusterconfig.NetworkVXLAN, Flag: clusterconfig.NetworkVXLAN, Board: board, Logger: slog.New(slog.NewTextHandler(&log, nil))}))(t)
	k.apply(clusterconfig.NetworkVXLAN)
	if c := board.Components(); len(c) > 0 || log.String() != "" {
		t.Errorf("it says %v, %s", c, log.String())
	}
	for range 2 {
		k.apply(clusterconfig.NetworkWireGuard)
		c := board.Components()
		if len(c) != 1 || c[0].State != status.Degraded || !strings.Contains(c[0].Message, `this server was given "vxlan", but the cluster now uses "wireguard"`) {
			t.Errorf("it says %v", c)
		}
		if n := strings.Count(log.String(), "the server cannot start with it again"); n != 1 {
			t.Errorf("it logs it %d times", n)
		}
	}
	k.apply(clusterconfig.NetworkVXLAN)
	if c := board.Components(); len(c) != 1 || c[0].State != status.Running || c[0].Message != "" {
		t.Errorf("it says %v", c)
	}
}
