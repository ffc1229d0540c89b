// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2/ktesting"

	"github.com/coracle-k8s/coracle/internal/filewatch"
	"github.com/coracle-k8s/coracle/internal/resolvconf"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestUpstreamsLeaveOutOwnAddresses(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "resolv.conf")
	clusterIPs := []netip.Addr{netip.MustParseAddr("10.43.0.10")}
	for _, c := range []struct{ file, want string }{
		{"", "[]"},
		{"# nameserver 192.0.2.1\nsearch home\noptions ndots:1\n", "[]"},
		{"nameserver 192.0.2.1\nnameserver\t2001:db8::1\n", "[192.0.2.1:53 [2001:db8::1]:53]"},
		{"nameserver 127.0.0.53\nnameserver 192.0.2.1\n", "[192.0.2.1:53]"},
		{"nameserver 127.0.0.1\nnameserver ::1\n", "[127.0.0.1:53 [::1]:53]"},
		{"nameserver 10.43.0.10\nnameserver 0.0.0.0\nnameserver bogus\n", "[]"},
		{"nameserver fe80::1%eth0\nnameserver 192.0.2.1\n", "[192.0.2.1:53]"},
		{"nameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4\n", "[192.0.2.1:53 192.0.2.2:53 192.0.2.3:53]"},
	} {
		write(t, path, c.file)
		servers := testenv.Must(resolvconf.Servers(path))(t)
		testenv.Equal(t, fmt.Sprint(upstreams(servers, clusterIPs)), c.want, "%q:", c.file)
	}
}

// TestResolversWithoutNotices: on a machine whose inotify instances are used up, the host's resolvers are followed all
// the same.
func TestResolversWithoutNotices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		board := status.NewBoard(time.Now)
		o := Options{ResolvConf: filepath.Join(t.TempDir(), "resolv.conf"), Board: board, newWatcher: func() (*fsnotify.Watcher, error) { return nil, unix.EMFILE }}
		write(t, o.ResolvConf, "nameserver 192.0.2.1\n")
		ctx, cancel := context.WithCancel(t.Context())
		w := watchResolvers(ctx, o, ktesting.NewLogger(t, ktesting.NewConfig()))
		defer w.close()
		defer cancel()
		if c := board.Components(); len(c) != 1 || c[0].State != status.Degraded {
			t.Errorf("the board says %+v", c)
		}
		write(t, o.ResolvConf, "nameserver 192.0.2.2\n")
		began := time.Now()
		if got := fmt.Sprint(<-w.changes); got != "[192.0.2.2:53]" || time.Since(began) != filewatch.Every {
			t.Errorf("got %s after %s", got, time.Since(began))
		}
	})
}
