//go:build bench

// SPDX-License-Identifier: Apache-2.0

package benchnet

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/proc"
	"github.com/coracle-k8s/coracle/test/testca"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const (
	hosts  = 50 // of each proxy, with three paths each: 150 routes
	bodyKB = 1

	backendPort = 8080
)

// proxyLab is what is measured: the ingress proxy and those of others, before the same backends, in the namespace of
// this process. Programs of others see the folder that their packages are unpacked in as the whole file system.
type proxyLab struct {
	t       *testing.T
	root    string // of the unpacked packages
	dir     string // below root: configurations, certificates, logs; inside is what programs call it
	inside  string
	files   testca.Files
	proxies []*webProxy
}

// webProxy is one that is measured.
type webProxy struct {
	*process
	name       string
	http, tls  int // its ports
	change     func(n int) error
	resting    sample
	settled    sample
	lastChange int
}

// TestIngress measures the ingress proxy beside Debian's nginx, HAProxy and Caddy: 50 hosts with three routes each,
// each host with two endpoints of its own.
func TestIngress(t *testing.T) {
	root := os.Getenv("CORACLE_BENCH_INGRESS")
	if root == "" {
		testenv.Missing(t, testenv.Foreign, "make bench-ingress unpacks nginx, HAProxy, Caddy, wrk and h2load")
	}
	l := newProxyLab(t, root)
	l.backends()
	for i, start := range []func(*webProxy){l.coracle, l.nginx, l.haproxy, l.caddy} {
		p := &webProxy{http: 8001 + i, tls: 8441 + i}
		start(p)
		l.proxies = append(l.proxies, p)
		for _, host := range []string{hostName(0), hostName(hosts - 1)} {
			eventually(t, p.name+" serves "+host, func() error { return ask(p.http, host) })
		}
	}
	time.Sleep(pick(5*time.Second, time.Second)) // for what a program does when it has started
	for _, p := range l.proxies {
		p.resting = p.memory()
	}
	window := pick(5*time.Second, time.Second)
	turns := pick(5, 1)
	columns := []column{{name: "requests/s", format: "%.0f", ratio: true}, {name: "CPU µs a request", ratio: true}, {name: "p50 ms"}, {name: "p99 ms"}, {name: "failed", format: "%.0f"}}
	l.compare("HTTP/1.1, 32 connections that stay", turns, columns, func(p *webProxy) (sample, error) { return l.wrk(p, "http://127.0.0.1:", p.http, window, 0) }, true)
	l.compare("HTTP/1.1 over TLS, 32 connections that stay", turns, columns, func(p *webProxy) (sample, error) {
		return l.wrk(p, "https://"+hostName(7)+":", p.tls, window, 0)
	}, false)
	l.compare("HTTP/2 over TLS, 4 connections with 8 requests each at a time", turns, columns, func(p *webProxy) (sample, error) { return l.h2load(p, window) }, false)
	for _, p := range l.proxies {
		p.settled = p.memory()
	}
	reloads := append(slices.Clone(columns), column{name: "changes", format: "%.0f"})
	l.compare("HTTP/1.1, 32 connections that stay, while one route changes each half second", turns, reloads, func(p *webProxy) (sample, error) {
		return l.wrk(p, "http://127.0.0.1:", p.http, window, 500*time.Millisecond)
	}, false)
	var rows []variant
	for _, p := range l.proxies {
		rows = append(rows, variant{p.name, func() (sample, error) {
			out := sample{"most": p.most()}
			for key, when := range map[string]sample{"at rest": p.resting, "after load": p.settled, "after changes": p.memory()} {
				for kind, x := range when {
					out[key+", "+kind] = x
				}
			}
			return out, nil
		}})
	}
	compare(t, "Memory in MB: all, where what several processes share counts once; in no file; the most of each process, added", 1, []column{
		{name: "at rest, all"}, {name: "at rest, anonymous"}, {name: "after load, all"}, {name: "after load, anonymous"}, {name: "after changes, all"}, {name: "after changes, anonymous"},
		{name: "most"},
	}, rows)
}

// compare is the lab's proxies in turns; direct adds the backend without a proxy.
func (l *proxyLab) compare(title string, turns int, columns []column, run func(*webProxy) (sample, error), direct bool) {
	var rows []variant
	for _, p := range l.proxies {
		rows = append(rows, variant{p.name, func() (sample, error) { return run(p) }})
	}
	if direct {
		rows = append(rows, variant{"no proxy", func() (sample, error) {
			s, err := run(&webProxy{name: "direct", http: backendPort})
			return s, err
		}})
	}
	compare(l.t, title, turns, columns, rows)
}

func hostName(n int) string { return fmt.Sprintf("site-%d.example", n) }

// endpoints are those of a host.
func endpoints(host int) []string {
	return []string{fmt.Sprintf("10.42.%d.1:%d", host, backendPort), fmt.Sprintf("10.42.%d.2:%d", host, backendPort)}
}

func newProxyLab(t *testing.T, root string) *proxyLab {
	netns.Require(t)
	l := &proxyLab{t: t, root: root, inside: "/bench"}
	l.dir = filepath.Join(root, l.inside)
	for _, dir := range []string{l.dir, filepath.Join(root, "dev")} {
		testenv.NoError(t, os.MkdirAll(dir, 0o755))
	}
	// Mounts of this process' namespace: they go with it.
	for dir, mount := range map[string][2]string{l.dir: {"tmpfs", ""}, filepath.Join(root, "dev"): {"", "/dev"}} {
		flags := uintptr(0)
		if mount[0] == "" {
			flags = unix.MS_BIND
		}
		testenv.NoError(t, unix.Mount(mount[1], dir, mount[0], flags, ""), "mount %s", dir)
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	}
	testenv.NoError(t, netns.AddAddress("lo", "10.42.0.1/16")) // and with it all others of the network
	authority, err := testca.New(l.dir)
	testenv.NoError(t, err)
	var names []string
	for i := range hosts {
		names = append(names, hostName(i))
	}
	l.files, err = authority.Issue("site", names...)
	testenv.NoError(t, err)
	l.write("../etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
	l.write("../etc/group", "root:x:0:\n")
	l.write("../etc/hosts", "127.0.0.1 "+strings.Join(names, " ")+"\n")
	return l
}

// write writes a file of the lab.
func (l *proxyLab) write(name, text string) {
	l.t.Helper()
	testenv.NoError(l.t, os.WriteFile(filepath.Join(l.dir, name), []byte(text), 0o644))
}

// foreign prepares one of the unpacked programs.
func (l *proxyLab) foreign(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env = "/", []string{"HOME=" + l.inside, "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: l.root}
	return cmd
}

// begin starts a proxy.
func (l *proxyLab) begin(p *webProxy, name string, cmd *exec.Cmd) {
	p.name = name
	p.process = start(l.t, netns.Own{}, strings.ToLower(name), cmd, nil)
}

// version is the number in what a program says of itself.
func (l *proxyLab) version(name string, args ...string) string {
	out, err := l.foreign(name, args...).CombinedOutput()
	number := regexp.MustCompile(`\d+\.\d+(\.\d+)?`).Find(out)
	testenv.Require(l.t, err == nil && number != nil, "%s %v: %v: %s", name, args, err, out)
	return string(number)
}

// ask gets a page of a host.
func ask(port int, host string) error {
	request, err := http.NewRequest(http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/p0/page", port), nil)
	if err != nil {
		return err
	}
	request.Host = host
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && (response.StatusCode != http.StatusOK || len(body) != bodyKB<<10) {
		err = fmt.Errorf("the answer is %s with %d bytes", response.Status, len(body))
	}
	return err
}

// tree are a process and those that it started, by number.
func tree(pid int) []int {
	children := map[int][]int{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if f := statFields(n); len(f) > 1 {
			parent, _ := strconv.Atoi(f[1])
			children[parent] = append(children[parent], n)
		}
	}
	out := []int{pid}
	for i := 0; i < len(out); i++ {
		out = append(out, children[out[i]]...)
	}
	return out
}

// statFields are what stands behind the name in /proc/PID/stat.
func statFields(pid int) []string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	return strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
}

// used is the processor time of a proxy's processes, those that have ended too.
func (p *webProxy) used() (total time.Duration) {
	if p.process == nil {
		return 0
	}
	for _, pid := range tree(p.pid) {
		total += (&process{pid: pid}).cpu()
	}
	return total
}

// memory is what a proxy's processes have, in MB: with what they map of files, of which what several of them share
// counts once; and what is in no file.
func (p *webProxy) memory() sample {
	out := sample{}
	for _, pid := range tree(p.pid) {
		file := fmt.Sprintf("/proc/%d/smaps_rollup", pid)
		out["all"] += float64(proc.Field(file, "Pss:")) / 1024
		out["anonymous"] += float64(proc.Field(file, "Pss_Anon:")) / 1024
	}
	return out
}

// most is what the proxy's processes of now had at most, in MB, each counted with all that it maps.
func (p *webProxy) most() (total float64) {
	for _, pid := range tree(p.pid) {
		total += proc.StatusMB(pid, "VmHWM:")
	}
	return total
}

const wrkScript = `
local all, n = {}, 0
function init(args)
  for site = 0, %d do for path = 0, 2 do
    local host = tonumber(args[1]) and "site-" .. args[1] .. ".example" or "site-" .. site .. ".example"
    all[#all+1] = wrk.format("GET", "/p" .. path .. "/page", {Host = host})
  end end
end
function request() n = n %% #all + 1; return all[n] end
function done(s, latency, r)
  local e = s.errors
  print(string.format("figures %%d %%d %%d %%d %%d", s.requests, s.duration, e.connect + e.read + e.write + e.timeout + e.status, latency:percentile(50), latency:percentile(99)))
end
`

// wrk loads a proxy by HTTP/1.1. With a pause it changes a route all along.
func (l *proxyLab) wrk(p *webProxy, url string, port int, window, pause time.Duration) (sample, error) {
	l.write("load.lua", fmt.Sprintf(wrkScript, hosts-1))
	args := []string{"-t", "1", "-c", "32", "-d", fmt.Sprint(int(window.Seconds()), "s"), "--timeout", "10s", "-s", l.inside + "/load.lua", fmt.Sprint(url, port, "/")}
	if strings.HasPrefix(url, "https") {
		args = append(args, "--", "7") // the host that the name in the handshake is of
	}
	before := p.used()
	stop := make(chan struct{})
	type changed struct {
		n   int
		err error
	}
	changes := make(chan changed, 1) // one: it is read once
	go func() {
		c := changed{}
		for pause > 0 && c.err == nil {
			select {
			case <-time.After(pause):
				c.err = p.change(p.lastChange + 1)
				p.lastChange++
				c.n++
				continue
			case <-stop:
			}
			break
		}
		changes <- c
	}()
	out, err := l.foreign("/usr/bin/wrk", args...).CombinedOutput()
	close(stop)
	c := <-changes
	used := p.used() - before
	if err != nil || c.err != nil {
		return nil, fmt.Errorf("wrk: %w: %s", errors.Join(err, c.err), out)
	}
	var requests, micros, failed, p50, p99 float64
	_, figures, _ := strings.Cut(string(out), "figures ")
	if _, err := fmt.Sscan(figures, &requests, &micros, &failed, &p50, &p99); err != nil {
		return nil, fmt.Errorf("reading what wrk says: %w: %s", err, out)
	}
	return figure(requests, micros/1e6, used, failed, p50/1e3, p99/1e3, c.n), nil
}

// figure is what a load measured.
func figure(requests, seconds float64, used time.Duration, failed, p50, p99 float64, changes int) sample {
	s := sample{"requests/s": requests / seconds, "p50 ms": p50, "p99 ms": p99, "failed": failed, "changes": float64(changes)}
	if used > 0 {
		s["CPU µs a request"] = float64(used.Microseconds()) / requests
	}
	return s
}

var h2Done = regexp.MustCompile(`requests: \d+ total, \d+ started, \d+ done, (\d+) succeeded, (\d+) failed`)

// h2load loads a proxy by HTTP/2 over TLS.
func (l *proxyLab) h2load(p *webProxy, window time.Duration) (sample, error) {
	log := filepath.Join(l.dir, "h2load.log")
	_ = os.Remove(log)
	before := p.used()
	out, err := l.foreign("/usr/bin/h2load", "-t", "1", "-c", "4", "-m", "8", "-D", fmt.Sprint(window.Seconds()), "--log-file", l.inside+"/h2load.log",
		"--connect-to", net.JoinHostPort("127.0.0.1", strconv.Itoa(p.tls)),
		"https://"+hostName(7)+"/p0/page", "https://"+hostName(7)+"/p1/page", "https://"+hostName(7)+"/p2/page").CombinedOutput()
	used := p.used() - before
	if err != nil {
		return nil, fmt.Errorf("h2load: %w: %s", err, out)
	}
	if !bytes.Contains(out, []byte("Application protocol: h2")) {
		return nil, fmt.Errorf("%s speaks no HTTP/2: %s", p.name, out)
	}
	match := h2Done.FindSubmatch(out)
	if match == nil {
		return nil, fmt.Errorf("reading what h2load says: %s", out)
	}
	requests, _ := strconv.ParseFloat(string(match[1]), 64)
	failed, _ := strconv.ParseFloat(string(match[2]), 64)
	file, err := os.Open(log)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var took []float64
	for s := bufio.NewScanner(file); s.Scan(); { // began, status, microseconds
		var began, status, micros float64
		if _, err := fmt.Sscan(s.Text(), &began, &status, &micros); err != nil {
			return nil, fmt.Errorf("reading h2load's log: %w: %s", err, s.Text())
		}
		if status != http.StatusOK {
			failed++
		}
		took = append(took, micros/1e3)
	}
	return figure(requests, window.Seconds(), used, failed, quantile(took, 0.5), quantile(took, 0.99), 0), nil
}
