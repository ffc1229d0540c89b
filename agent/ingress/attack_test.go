// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// hostile is a proxy that an attacker controls: it answers each line of its agent as it likes.
func hostile(t *testing.T, answer func(conn *net.UnixConn)) (dir string, e entry) {
	t.Helper()
	dir = testenv.Must(os.MkdirTemp("", "i"))(t)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	e = entry{PID: os.Getpid(), Socket: "control-1.sock"}
	l := testenv.Must(net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, e.Socket), Net: "unix"}))(t)
	var running sync.WaitGroup
	t.Cleanup(func() {
		_ = l.Close()
		running.Wait()
	})
	running.Go(func() {
		for {
			conn, err := l.AcceptUnix()
			if err != nil {
				return
			}
			running.Go(func() {
				defer conn.Close()
				for in := bufio.NewScanner(conn); in.Scan(); {
					answer(conn)
				}
			})
		}
	})
	return dir, e
}

func send(t *testing.T, conn *net.UnixConn, a table.Response, files ...*os.File) {
	text, err := json.Marshal(a)
	testenv.Check(t, err)
	var descriptors []int
	for _, f := range files {
		descriptors = append(descriptors, int(f.Fd()))
	}
	_, _, _ = conn.WriteMsgUnix(append(text, '\n'), syscall.UnixRights(descriptors...), nil) // who asked may have gone
}

// TestSocketsOfAHostileProxy: what is no socket for clients is not taken.
func TestSocketsOfAHostileProxy(t *testing.T) {
	null := testenv.Must(os.Open(os.DevNull))(t)
	defer null.Close()
	l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer l.Close()
	good := testenv.Must(l.(*net.TCPListener).File())(t)
	defer good.Close()
	for name, answer := range map[string]func(conn *net.UnixConn){
		"a file": func(conn *net.UnixConn) {
			send(t, conn, table.Response{Sockets: []string{"ingress/http", "ingress/http"}}, null, good)
		},
		"fewer than it names": func(conn *net.UnixConn) {
			send(t, conn, table.Response{Sockets: []string{"ingress/http", "ingress/https"}}, good)
		},
		"descriptors without end": func(conn *net.UnixConn) {
			for range 2000 {
				if _, _, err := conn.WriteMsgUnix([]byte(" "), syscall.UnixRights(int(good.Fd()), int(good.Fd()), int(good.Fd())), nil); err != nil {
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, e := hostile(t, answer)
			before := openFiles(t)
			p, s, err := adopt(dir, e)
			if err == nil {
				p.close()
			}
			testenv.True(t, err != nil && s == nil, "the sockets %+v are taken: %v", s, err)
			eventually(t, "its descriptors are closed", func() bool { return openFiles(t) <= before })
		})
	}
}

func openFiles(t *testing.T) int {
	all := testenv.Must(os.ReadDir("/proc/self/fd"))(t)
	return len(all)
}

// TestNumberOfAHostileProxy: a proxy that says that it is another process does not have that one sent signals.
func TestNumberOfAHostileProxy(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("the proxy's user is this test's own")
	}
	dir, _ := hostile(t, func(conn *net.UnixConn) { send(t, conn, table.Response{PID: os.Getpid()}) })
	if r := recoverProcesses(dir); len(r.Processes) != 0 {
		t.Errorf("the record has %+v", r.Processes)
	}
}

// TestAnswersOfAHostileProxyAreBounded: one without end takes no more memory than an answer may have.
func TestAnswersOfAHostileProxyAreBounded(t *testing.T) {
	piece := bytes.Repeat([]byte("x"), 64<<10)
	dir, e := hostile(t, func(conn *net.UnixConn) {
		_, err := conn.Write([]byte(`{"problems":{"a":"`))
		for err == nil {
			_, err = conn.Write(piece)
		}
	})
	p := testenv.Must(connect(dir, e))(t)
	p.reading.Go(p.read)
	defer p.close()
	testenv.Must(p.conn.Write([]byte("\n")))(t)
	select {
	case err := <-p.connEnded:
		if !strings.Contains(err.Error(), "bytes") {
			t.Error(err)
		}
	case <-time.After(2 * time.Minute):
		t.Error("it is read without end")
	}
}
