// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// agent is the other end of a control connection.
type agent struct {
	t    testing.TB
	conn net.Conn
	r    *bufio.Reader
}

func dialAgent(t testing.TB, socket string) *agent {
	t.Helper()
	conn := testenv.Must(net.Dial("unix", socket))(t)
	t.Cleanup(func() { _ = conn.Close() })
	return &agent{t, conn, bufio.NewReader(conn)}
}

// commit sends changes and returns the proxy's answer.
func (a *agent) commit(changes ...table.Change) table.Response {
	a.t.Helper()
	for _, c := range append(changes, table.Change{Commit: true}) {
		testenv.NoError(a.t, json.NewEncoder(a.conn).Encode(c))
	}
	line := testenv.Must(a.r.ReadBytes('\n'))(a.t)
	var answer table.Response
	testenv.NoError(a.t, json.Unmarshal(line, &answer))
	return answer
}

func startControl(t *testing.T) (*Proxy, string) {
	t.Helper()
	p := mustNew(t)
	socket := filepath.Join(t.TempDir(), "s")
	l := testenv.Must(net.Listen("unix", socket))(t)
	testenv.Run(t, func(ctx context.Context) error {
		return (&Control{Proxy: p, Logger: quiet(), Listeners: NewListeners(p, nil)}).Serve(ctx, l)
	})
	return p, socket
}

func hasHost(p *Proxy, name string) bool { return hostOf(p, "s", name) != nil }

func TestFirstCommitReplacesTheTableAndLaterOnesChangeIt(t *testing.T) {
	p, socket := startControl(t)
	a, b := section(t, table.HostKey("s", "a"), routed("a", "/")), section(t, table.HostKey("s", "b"), routed("b", "/"))
	one := dialAgent(t, socket)
	one.commit(a)
	one.commit(b)
	testenv.Require(t, hasHost(p, "a") && hasHost(p, "b"), "a later commit does not add to the table")
	kept := hostOf(p, "s", "b")
	two := dialAgent(t, socket)
	answer := two.commit(b, section(t, table.CertificateKey("n", "c"), table.Certificate{}))
	testenv.True(t, !hasHost(p, "a") && hostOf(p, "s", "b") == kept,
		"a new agent's first commit does not replace the table, or builds again what is equal")
	testenv.True(t, len(answer.Problems) == 1, "answered with %v, want one problem", answer)
	if _, err := one.r.ReadByte(); err != io.EOF {
		t.Errorf("the first agent's connection: %v, want its end", err)
	}
	if answer := two.commit(table.Change{Key: table.CertificateKey("n", "c")}); len(answer.Problems) != 0 {
		t.Errorf("answered with %v, want no problem left", answer)
	}
}

func TestTableStaysWithoutAnAgent(t *testing.T) {
	p, socket := startControl(t)
	one := dialAgent(t, socket)
	one.commit(section(t, table.HostKey("s", "a"), routed("a", "/")))
	for _, bad := range []string{"no json\n", `{"key":"host/s/a","value":null}` + "\n", `{"commit":true}`} {
		two := dialAgent(t, socket) // ends the agent before, and with its own end has sent no commit
		_, _ = io.WriteString(two.conn, bad)
		_ = two.conn.(*net.UnixConn).CloseWrite()
		if rest, _ := io.ReadAll(two.r); len(rest) != 0 {
			t.Errorf("%q is answered with %q", bad, rest)
		}
		testenv.Require(t, hasHost(p, "a"), "the table is lost after %q", bad)
	}
}

func TestLinesAreBounded(t *testing.T) {
	r := bufio.NewReaderSize(io.MultiReader(strings.NewReader(strings.Repeat("x", 100_000)+"\n"), endless{}), 64)
	if line, err := readLine(r); err != nil || len(line) != 100_001 {
		t.Errorf("read %d bytes, %v", len(line), err)
	}
	testenv.WantError(t, testenv.Err(readLine(r)), "line of more than")
}

// endless is a line without end.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}
