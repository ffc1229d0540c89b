// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestMain runs the program itself when the environment names sockets, so that tests start it as a process of its own.
func TestMain(m *testing.M) {
	if os.Getenv(table.EnvNames) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// process is a running proxy.
type process struct {
	cmd                *exec.Cmd
	http, https, http3 string
	control            net.Conn
	answers            *bufio.Reader
}

func start(t testing.TB) *process {
	t.Helper()
	p := &process{}
	control := filepath.Join(t.TempDir(), "s")
	var files []*os.File
	for _, address := range []string{"127.0.0.1:0", "127.0.0.1:0", control} {
		network := "tcp"
		if address == control {
			network = "unix"
		}
		l := testenv.Must(net.Listen(network, address))(t)
		defer l.Close()
		if u, ok := l.(*net.UnixListener); ok {
			u.SetUnlinkOnClose(false)
		}
		file := testenv.Must(l.(interface{ File() (*os.File, error) }).File())(t)
		defer file.Close()
		files = append(files, file)
		if p.http == "" {
			p.http = l.Addr().String()
		} else if p.https == "" {
			p.https = l.Addr().String()
		}
	}
	udp := testenv.Must(net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}))(t)
	defer udp.Close()
	file := testenv.Must(udp.File())(t)
	defer file.Close()
	files, p.http3 = append(files, file), udp.LocalAddr().String()
	p.cmd = exec.Command(os.Args[0])
	p.cmd.Env = append(os.Environ(), "QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING=true",
		table.EnvNames+"=ingress/http,ingress/https,"+table.ControlName+",ingress/http3")
	p.cmd.Stderr = os.Stderr
	p.cmd.ExtraFiles = files
	testenv.NoError(t, p.cmd.Start())
	t.Cleanup(func() { _ = p.cmd.Process.Kill() })
	conn := testenv.Must(net.Dial("unix", control))(t)
	t.Cleanup(func() { _ = conn.Close() })
	p.control, p.answers = conn, bufio.NewReader(conn)
	return p
}

// apply sends a table and waits for the answer.
func (p *process) apply(t testing.TB, s table.Sections) table.Response {
	t.Helper()
	for _, c := range append(table.Diff(nil, s), table.Change{Commit: true}) {
		testenv.NoError(t, json.NewEncoder(p.control).Encode(c))
	}
	line := testenv.Must(p.answers.ReadBytes('\n'))(t)
	var answer table.Response
	testenv.NoError(t, json.Unmarshal(line, &answer))
	return answer
}

// to is a table that sends everything to one address.
func to(t testing.TB, address string) table.Sections {
	t.Helper()
	s := table.Sections{}
	b := table.Backend{Namespace: "n", Service: "s", Port: "80"}
	h := table.Host{Routes: []table.Route{{Path: "/", Kind: table.PathPrefix, Backends: []table.Backend{b}}}}
	testenv.NoError(t, s.Put(table.HostKey(table.SiteIngress, ""), h))
	testenv.NoError(t, s.Put(b.Key(), table.Endpoints{Addresses: []string{address}}))
	return s
}

func TestProcessServesByTheAgentsTableAndDrains(t *testing.T) {
	p := start(t)
	answer := p.apply(t, to(t, "127.0.0.1:9"))
	if text := fmt.Sprint(answer.Problems); !strings.Contains(text, "may not lead to the address 127.0.0.1:9") {
		t.Errorf("an endpoint on loopback gives the problems %s", text)
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}
	for _, url := range []string{"http://" + p.http, "https://" + p.https} {
		res := testenv.Must((&http.Client{Transport: tr}).Get(url))(t)
		_ = res.Body.Close()
		testenv.True(t, res.StatusCode == http.StatusServiceUnavailable,
			"%s: %s, want 503 for a backend without an endpoint", url, res.Status)
	}
	status := testenv.Must(os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid)))(t)
	testenv.False(t, !hasCgo() && !strings.Contains(string(status), "NoNewPrivs:\t1"), "the process may gain privileges")
	testenv.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	testenv.Check(t, p.cmd.Wait(), "SIGTERM ends the process with")
}

// TestProcessEndsWithoutAnAgent: a process whose agent goes before the first table has accepted nothing, and ends.
func TestProcessEndsWithoutAnAgent(t *testing.T) {
	p := start(t)
	conn := testenv.Must(net.Dial("tcp", p.http))(t)
	defer conn.Close()
	testenv.Must(io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"))(t)
	_ = p.control.Close()
	if err := p.cmd.Wait(); err == nil || p.cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("it ends with %v", err)
	}
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("a client got %d bytes, %v", n, err)
	}
}

// hasCgo reports whether the program was built with cgo, as for the race detector.
func hasCgo() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "CGO_ENABLED", Value: "1"})
}

func TestNamesOfSocketsAreChecked(t *testing.T) {
	for _, names := range []string{"", "control,control", "a/http", "a/ftp,control", "http,control"} {
		testenv.Fails(t, run(context.Background(), slog.New(slog.DiscardHandler), names), "the names %q are taken", names)
	}
}

// machineAddress is an address of this machine that is not loopback, which the program refuses.
func machineAddress(b *testing.B) string {
	all := testenv.Must(net.InterfaceAddrs())(b)
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	b.Skip("this machine has no address but loopback")
	return ""
}

// resident is a process' resident memory in bytes.
func resident(b *testing.B, pid int) float64 {
	b.Helper()
	status := testenv.Must(os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)))(b)
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	var kb float64
	testenv.Must(fmt.Sscan(rest, &kb))(b)
	return kb * 1024
}

// cpuTime is what a process has taken of the CPU, in microseconds.
func cpuTime(b *testing.B, pid int) float64 {
	b.Helper()
	stat := testenv.Must(os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)))(b)
	_, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest) // from the third one of proc(5) on
	var user, system float64
	testenv.Must(fmt.Sscan(fields[11], &user))(b)
	testenv.Must(fmt.Sscan(fields[12], &system))(b)
	return (user + system) * 10_000 // ticks of 10 ms
}

// BenchmarkRequests measures the process' own CPU time for each HTTP/1.1 request, with some dozen at a time on
// connections that stay open. One at a time takes twice as much, for going to sleep and waking up.
func BenchmarkRequests(b *testing.B) {
	l := testenv.Must(net.Listen("tcp", machineAddress(b)+":0"))(b)
	go func() {
		_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "Hello, world!") }))
	}()
	defer l.Close()
	p := start(b)
	p.apply(b, to(b, l.Addr().String()))
	tcp := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, MaxIdleConnsPerHost: 1000}}
	quic := &http3.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer quic.Close()
	for _, by := range []struct {
		name, url string
		c         *http.Client
	}{{"http", "http://" + p.http, tcp}, {"https", "https://" + p.https, tcp}, {"http3", "https://" + p.http3, &http.Client{Transport: quic}}} {
		b.Run(by.name, func(b *testing.B) {
			c, url := by.c, by.url
			before := cpuTime(b, p.cmd.Process.Pid)
			b.SetParallelism(16) // of each CPU
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					res, err := c.Get(url)
					if err != nil {
						b.Error(err)
						return
					}
					_, _ = io.Copy(io.Discard, res.Body)
					_ = res.Body.Close()
				}
			})
			b.ReportMetric((cpuTime(b, p.cmd.Process.Pid)-before)/float64(b.N), "cpu-µs/op")
		})
	}
}

// BenchmarkIdleWebsocket measures the memory that the process takes for each idle websocket over TLS, of a thousand
// that have each carried some bytes, the process at rest, and with 50 and 1,000 hosts.
func BenchmarkIdleWebsocket(b *testing.B) {
	l := testenv.Must(net.Listen("tcp", machineAddress(b)+":0"))(b)
	defer l.Close()
	go acceptWebsockets(l)
	p := start(b)
	p.apply(b, to(b, l.Addr().String()))
	before := resident(b, p.cmd.Process.Pid)
	const count = 1000
	for range count {
		conn := testenv.Must(tls.Dial("tcp", p.https, &tls.Config{InsecureSkipVerify: true}))(b)
		defer conn.Close()
		_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		r := bufio.NewReader(conn)
		res, err := http.ReadResponse(r, nil)
		testenv.Require(b, err == nil && res.StatusCode == http.StatusSwitchingProtocols, "%v %v", res, err)
		_, _ = io.WriteString(conn, "twelve bytes")
		testenv.Must(io.ReadFull(r, make([]byte, 12)))(b)
	}
	after := resident(b, p.cmd.Process.Pid)
	b.ReportMetric((after-before)/count/1024, "KB/websocket")
	b.ReportMetric(before/1024/1024, "MB-at-rest")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkIdleHTTP3 measures the memory that the process takes for each idle connection of HTTP/3, of a thousand that
// have each had a request, and for each stream on which a client has begun a header and sends no more.
func BenchmarkIdleHTTP3(b *testing.B) {
	p := start(b)
	p.apply(b, to(b, "192.0.2.1:80"))
	before := resident(b, p.cmd.Process.Pid)
	const count = 1000
	var all []*quic.Conn
	for range count {
		tr := &http3.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, QUICConfig: &quic.Config{MaxIdleTimeout: time.Hour},
			Dial: func(ctx context.Context, address string, c *tls.Config, q *quic.Config) (*quic.Conn, error) {
				conn, err := quic.DialAddr(ctx, address, c, q)
				all = append(all, conn)
				return conn, err
			}}
		defer tr.Close()
		req, err := http.NewRequest(http.MethodTrace, "https://"+p.http3, nil) // the proxy answers it by itself
		testenv.NoError(b, err)
		res := testenv.Must(tr.RoundTrip(req))(b)
		_ = res.Body.Close()
	}
	after := resident(b, p.cmd.Process.Pid)
	streams := 0
	for _, conn := range all {
		for range 50 {
			s, err := conn.OpenStream()
			if err != nil {
				break
			}
			testenv.Must(s.Write([]byte{1, 0x40, 50}))(b)
			streams++
		}
	}
	time.Sleep(2 * time.Second)
	b.ReportMetric((after-before)/count/1024, "KB/connection")
	b.ReportMetric((resident(b, p.cmd.Process.Pid)-after)/float64(streams)/1024, "KB/stream")
	b.ReportMetric(float64(streams), "streams")
	b.ReportMetric(0, "ns/op")
}

// acceptWebsockets shakes hands and sends back what it gets.
func acceptWebsockets(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			r := bufio.NewReader(conn)
			if _, err := http.ReadRequest(r); err != nil {
				return
			}
			_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			_, _ = io.Copy(conn, r)
		}()
	}
}

// BenchmarkHosts measures the process' memory with hosts of three routes each.
func BenchmarkHosts(b *testing.B) {
	for _, count := range []int{50, 1000} {
		b.Run(fmt.Sprint(count), func(b *testing.B) {
			s := table.Sections{}
			for i := range count {
				h := table.Host{}
				for j := range 3 {
					backend := table.Backend{Namespace: "namespace", Service: fmt.Sprintf("service-%d-%d", i, j), Port: "http"}
					h.Routes = append(h.Routes, table.Route{
						Path: fmt.Sprintf("/path/%d", j), Kind: table.PathPrefix, Object: "Ingress/namespace/name", Backends: []table.Backend{backend},
					})
					testenv.NoError(b, s.Put(backend.Key(), table.Endpoints{Addresses: []string{"10.42.0.1:8080", "10.42.1.1:8080"}}))
				}
				testenv.NoError(b, s.Put(table.HostKey(table.SiteIngress, fmt.Sprintf("host-%d.example.org", i)), h))
			}
			p := start(b)
			p.apply(b, s)
			b.ReportMetric(resident(b, p.cmd.Process.Pid)/1024/1024, "MB")
			b.ReportMetric(0, "ns/op")
		})
	}
}
