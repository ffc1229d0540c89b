// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/joining/protocol"
	"github.com/coracle-k8s/coracle/server/peertls"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// listening is a server of the cluster whose files are in common, with the ports that a server that waits has, and no
// store.
func listening(t *testing.T, common string) *Server {
	t.Helper()
	o := options(t.TempDir())
	o.AdvertiseAddress, o.HTTPSPort = netip.MustParseAddr("127.0.0.1"), testenv.Port(t)
	if common != "" {
		testenv.NoError(t, os.CopyFS(o.ServerDir, os.DirFS(common)))
		for _, own := range []string{"identity.json", "lock", filepath.Join("tls", "peer.pem")} {
			testenv.NoError(t, os.RemoveAll(filepath.Join(o.ServerDir, own)))
		}
	}
	s := testenv.Must(New(t.Context(), o))(t)
	t.Cleanup(func() { testenv.Check(t, s.Close()) })
	stop := s.admission.Serve(context.Background())
	t.Cleanup(stop)
	l := s.peers.Listener(s.port.Route(peertls.Protocol))
	go testenv.Accept(l, func(c net.Conn) {
		_, _ = c.Read(make([]byte, 1)) // the handshake
		_ = c.Close()
	})
	return s
}

// TestWaitingServerLearnsWhetherItIsReachable: a server that waits learns from another one whether its own address
// leads to it.
func TestWaitingServerLearnsWhetherItIsReachable(t *testing.T) {
	there := listening(t, "")
	waiting := listening(t, there.o.ServerDir)
	asked := net.JoinHostPort("127.0.0.1", there.openPort())
	testenv.Equal(t, waiting.starting.WhyUnreached(t.Context(), []string{waiting.peerAddress(), asked}), "", "it is reached:")
	expect := func(what, want string) {
		t.Helper()
		if why := waiting.starting.WhyUnreached(t.Context(), []string{asked}); !strings.Contains(why, want) ||
			!strings.Contains(why, "--advertise-address") {
			t.Errorf("%s: %q, want %q", what, why, want)
		}
	}
	waiting.o.AdvertiseAddress = netip.MustParseAddr("127.0.0.9")
	expect("an address at which nobody listens", "refused")
	waiting.o.AdvertiseAddress = netip.MustParseAddr("127.0.0.1")
	third := listening(t, there.o.ServerDir)
	waiting.listener = third.listener
	expect("another server's address", "another server answers there")
	dead := net.JoinHostPort("127.0.0.1", strconv.Itoa(testenv.Port(t)))
	testenv.Contains(t, waiting.starting.WhyUnreached(t.Context(), []string{dead}), "no other server answers", "")
}

// TestWhyUnreachedByMutePeer: a server that is off, and that takes no connections and refuses none, does not keep the
// reason from the operator for as long as a conversation may last.
func TestWhyUnreachedByMutePeer(t *testing.T) {
	fd := testenv.Must(unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))(t)
	defer func() { _ = unix.Close(fd) }()
	testenv.NoError(t, unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})) // the kernel chooses a port
	testenv.NoError(t, unix.Listen(fd, 0))                                              // room for one connection
	bound := testenv.Must(unix.Getsockname(fd))(t)
	mute := net.JoinHostPort("127.0.0.1", strconv.Itoa(bound.(*unix.SockaddrInet4).Port)) //nolint:forcetypeassert // of its family
	first := testenv.Must(net.Dial("tcp", mute))(t)
	defer func() { _ = first.Close() }()
	waiting := listening(t, "")
	began := time.Now()
	testenv.Contains(t, waiting.starting.WhyUnreached(t.Context(), []string{mute}), "no other server answers", "")
	if took := time.Since(began); took >= protocol.Timeout {
		t.Errorf("the reason is known after %v", took)
	}
}
