// SPDX-License-Identifier: Apache-2.0

package peer

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestHandshakeIsEncodedAsSpecified(t *testing.T) {
	h := hello{level: 1, kind: kindCalls, cluster: "c", sender: "", receiver: "b.1"}
	b, err := h.encode()
	if want := "CRPR\x01\x02\x01c\x00\x03b.1"; err != nil || string(b) != want {
		t.Fatalf("%q, %v", b, err)
	}
	a := reply{id: "b.1", reason: "no"}
	if want := "CRPR\x01\x01\x03b.1\x02\x00no"; string(a.encode()) != want {
		t.Fatalf("%q", a.encode())
	}
	h.cluster = strings.Repeat("x", maxName+1)
	if _, err := h.encode(); err == nil {
		t.Fatal("a name that does not fit was encoded")
	}
	a.reason = strings.Repeat("x", 1<<20)
	if got, err := readReply(bytes.NewReader(a.encode())); err != nil || len(got.reason) != maxReason {
		t.Fatalf("%d bytes, %v", len(got.reason), err)
	}
}

// FuzzHello checks that a hello is read exactly, or refused, whatever comes.
func FuzzHello(f *testing.F) {
	for _, h := range []hello{
		{kind: kindRaft, cluster: "c", sender: "a.1", receiver: "b.1"},
		{kind: kindSnapshots, cluster: "c", sender: "a.1", receiver: "c.1"},
		{kind: kindRaft, cluster: "d", sender: "a.1", receiver: "b.1"},
		{kind: kindRaft, cluster: "c", receiver: "b.1"},
		{kind: kindSnapshots},
		{kind: kindCalls},
		{kind: kindCalls, cluster: strings.Repeat("c", maxName)},
	} {
		h.level = 1
		b := testenv.Must(h.encode())(f)
		f.Add(b)
		f.Add(append(b, "and more"...))
		f.Add(b[:len(b)-1])
	}
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	for _, s := range []string{"CRPR\x02\x01", "CRPR\x01x", "CRPR\x01\x02\xffc", "CRPR\x01\x01\x01c\x00\x00"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		h, err := readHello(r, 1)
		if err != nil {
			return
		}
		again := testenv.Must(h.encode())(t)
		if used := b[:len(b)-r.Len()]; !bytes.Equal(used, again) {
			t.Fatalf("%q became %q", used, again)
		}
		o := Options{Cluster: "c", ID: "b.1"}
		if h.kind != kindCalls && o.checkHello(h) == "" && (h.cluster != o.Cluster || h.receiver != o.ID || h.sender == "") {
			t.Fatalf("%+v was taken", h)
		}
	})
}

// FuzzAnswer does the same for an answer.
func FuzzAnswer(f *testing.F) {
	for _, a := range []reply{{}, {id: "b.1"}, {id: "b.1", reason: "no"}, {reason: strings.Repeat("n", maxReason)}} {
		f.Add(a.encode())
		f.Add(append(a.encode(), 1))
	}
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := readReply(bytes.NewReader(b))
		if err != nil {
			return
		}
		if again, err := readReply(bytes.NewReader(a.encode())); err != nil || again != a {
			t.Fatalf("%+v became %+v, %v", a, again, err)
		}
	})
}

// FuzzCall does the same for a call's message.
func FuzzCall(f *testing.F) {
	f.Add([]byte("\x04readbody"))
	f.Add([]byte{})
	f.Add([]byte{200, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		var m message
		if err := m.decode(b); err != nil {
			return
		}
		data, err := messages{}.Marshal(&m)
		testenv.Require(t, err == nil && bytes.Equal(data.Materialize(), b), "%q became %q, %v", b, data.Materialize(), err)
	})
}

func TestForeignProtocolsAreRefused(t *testing.T) {
	onBoth(t, func(t *testing.T, g ground) {
		a, b := start(t, g, 0, "a.1", nil), start(t, g, 1, "b.1", nil)
		for say, reason := range map[string]string{
			"GET / HTTP/1.1\r\nHost: x\r\n\r\n":        "this port is only for coracle servers",
			"CRPR\x07\x01":                             "speaks version 7 of the protocol between servers, this server speaks version 1",
			"CRPR\x01\x09":                             "wants a connection of an unknown kind 9",
			"CRPR\x01\x01\x00\x00\x00":                 "raft needs to know the cluster and both servers",
			"CRPR\x01\x01\x02c1\x03a.1\x03x.1":         "this is not server x.1 but server b.1",
			"CRPR\x01\x02\x02c2\x00\x00":               "the caller belongs to cluster c2, this is cluster c1",
			"CRPR\x01\x02\x02c1\x03b.1\x03b.1":         "server b.1 connected to itself",
			"CRPR\x01\x01\x02c1\x03a.1\x03b.1\x63\x63": "", // raft's garbage
			"CRPR\x01\x02\x02c1\x03a.1\x03b.1\x63\x63": "", // gRPC's garbage
		} {
			c := testenv.Must(g.dial(0)(t.Context(), string(b.address)))(t)
			testenv.Must(c.Write([]byte(say)))(t)
			got, err := readReply(c)
			testenv.False(t, err != nil || got.reason != reason || got.id != "b.1", "%q: %+v, %v", say, got, err)
			closeConn(c)
		}
		testenv.Must(a.beat(b, 1))(t)
	})
}

// TestUnfinishedHandshakesAreClosed has dialers that say nothing, or not all: they are
// closed, and never keep others out.
func TestUnfinishedHandshakesAreClosed(t *testing.T) {
	inMemory(t, func(t *testing.T, m memory) {
		a, b := start(t, m, 0, "a.1", nil), start(t, m, 1, "b.1", nil)
		var slow []net.Conn
		closed := func(c net.Conn) bool {
			testenv.NoError(t, c.SetReadDeadline(time.Now().Add(time.Microsecond)))
			_, err := c.Read(make([]byte, 1))
			return !errors.Is(err, os.ErrDeadlineExceeded)
		}
		const unidentified = 2 * maxUnidentified
		for i := range unidentified {
			c := testenv.Must(m.dial(2)(t.Context(), "b"))(t)
			testenv.Must(c.Write([]byte("CRPR\x01\x01\x03abc")[:i%9]))(t)
			slow = append(slow, c)
		}
		synctest.Wait()
		began := time.Now()
		if _, err := a.beat(b, 1); err != nil || time.Since(began) > 0 {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		synctest.Wait()
		for i, c := range slow { // the call's connection is one more
			if want := i <= unidentified-maxUnidentified; closed(c) != want {
				t.Fatalf("of %d connections, the one numbered %d was hung up on: %v, want %v", unidentified, i, !want,
					want)
			}
		}
		time.Sleep(b.handshakeTime()) // what is tested: the time that a handshake may take is over
		for _, c := range slow {
			testenv.Require(t, closed(c), "not closed")
			_ = c.Close()
		}
	})
}

// TestServerWithoutHandshakeIsUnavailable has a server that takes the connection and never answers, or
// answers nonsense.
func TestServerWithoutHandshakeIsUnavailable(t *testing.T) {
	inMemory(t, func(t *testing.T, m memory) {
		a := start(t, m, 0, "a.1", nil)
		l, address := m.listen(t, 1)
		said := make(chan string, 1)
		go testenv.Accept(l, func(c net.Conn) {
			if s := <-said; s != "" {
				_, _ = io.WriteString(c, s)
			}
		})
		for _, s := range []string{"", "CRPR", "CRPR\x01\x00\x03b.1\xff\xff", "HTTP/1.1 200 OK\r\n", "CRPR\x01\x00\x00\x01\x00x"} {
			said <- s
			began := time.Now()
			_, err := a.beat(&server{id: "b.1", address: "b"}, 1)
			if took := time.Since(began); err == nil || took > a.opts.Timeout {
				t.Fatalf("%q: %v after %v", s, err, took)
			}
			testenv.True(t, strings.Contains(err.Error(), "handshake with the server at "+address), "%v", err)
		}
		testenv.NoError(t, l.Close())
	})
}

// TestHandshakeOfLevels connects an older program with a newer one, both ways. They understand each other at the level
// that both know. What is sent at a later level never reaches the older one, not even on a connection from before.
func TestHandshakeOfLevels(t *testing.T) {
	onBoth(t, func(t *testing.T, g ground) {
		var level atomic.Int64
		level.Store(1)
		older := start(t, g, 0, "a.1", func(o *Options) { o.Newest = 1 })
		newer := start(t, g, 1, "b.1", func(o *Options) {
			o.Newest, o.Level = 2, func() int { return int(level.Load()) }
		})
		next := start(t, g, 2, "c.1", func(o *Options) { o.Newest, o.Level = 3, func() int { return 2 } })
		for _, pair := range [][2]*server{{older, newer}, {newer, older}} {
			testenv.Must(pair[0].beat(pair[1], 1))(t)
		}
		level.Store(2)
		newer.EndOlder()
		_, err := newer.beat(older, 1)
		testenv.WantError(t, err, "speaks version 2 of the protocol between servers, this server speaks version 1")
		testenv.Must(older.beat(newer, 1))(t) // it is behind, and has to learn that the cluster goes on without it
		for _, pair := range [][2]*server{{next, newer}, {newer, next}} {
			testenv.Must(pair[0].beat(pair[1], 1))(t)
		}
		_, err = older.beat(next, 1)
		testenv.WantError(t, err, "speaks version 1 of the protocol between servers, this server speaks versions 2 to 3")
	})
}

// TestRaftsVersions holds what is said to other servers to numbers that the library still speaks. Its newest may be
// later: then a level has to say when it is used.
func TestRaftsVersions(t *testing.T) {
	testenv.True(t, raft.ProtocolVersionMin <= ProtocolVersion && ProtocolVersion <= raft.ProtocolVersionMax,
		"the library speaks versions %d to %d", raft.ProtocolVersionMin, raft.ProtocolVersionMax)
	testenv.Equal(t, ProtocolVersion, 3, "the version at level 1 is")
}
