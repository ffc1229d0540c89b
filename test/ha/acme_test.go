//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/acme"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testca"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// Ports of the site, where no machine is: the gate in front of pebble, pebble, its management, and the DNS server with
// its own.
const gatePort, pebblePort, pebbleManagement, dnsPort, dnsManagement = "14000", "14001", "15000", "8053", "8055"

const acmeIngress = `
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: %[1]s, annotations: {kubernetes.io/tls-acme: "true"}}
spec:
  tls: [{secretName: %[1]s, hosts: [%[1]s-0.example, %[1]s-1.example, %[1]s-2.example]}]
  defaultBackend: {service: {name: none, port: {number: 80}}}
  rules: [{host: %[1]s-0.example}, {host: %[1]s-1.example}, {host: %[1]s-2.example}]
`

// TestACMEOrdersSurviveFaults: three servers get certificates from pebble. The account is refused at first; a leader is
// killed when it has just asked for a validation; a disk is full when the certificate arrives. Each certificate is of
// one order, and every node serves it.
func TestACMEOrdersSurviveFaults(t *testing.T) {
	harness.ByHand(t)
	a := newAuthority(t)
	c := &Cluster{T: t, nodes: true, prepare: func(s *harness.Server) {
		s.AddDisk()
		s.AddBoxImage()
		s.Args = append(s.Args, "--ingress-acme-email", "admin@shop.example", "--ingress-acme-server", "https://"+net.JoinHostPort(harness.OutsideIP, gatePort)+"/dir",
			"--ingress-acme-ca-file", a.files.CA)
	}}
	c.start(3, 0)
	a.serve(c.Site)
	k := c.MustLeader().In(t)

	t.Log("the account is refused")
	a.pebble(true)
	a.resolve(c, "one")
	k.Apply(fmt.Sprintf(acmeIngress, "one"))
	expectEvent(c, "one", "CertificateFailed", "there is no account with the authority", "name another one by --ingress-acme-server")
	a.endPebble()           // until all nodes serve: an order that cannot be validated at one of them is repeated after 15 minutes
	again := c.MustLeader() // as an operator who has changed the settings starts it again
	again.Kill()
	again.Start()
	c.WaitWhole()
	ingressesServe(c)
	a.pebble(false)
	a.served(c.Servers, "one")
	a.ordered(1)

	t.Log("the leader is killed")
	a.resolve(c, "two")
	held, release := a.hold("/chalZ/")
	c.MustLeader().In(t).Apply(fmt.Sprintf(acmeIngress, "two"))
	wait(t, held, "the leader asks for a validation")
	leader := c.MustLeader()
	leader.Kill()
	release()
	a.served(Without(c.Servers, leader), "two")
	a.ordered(2)
	leader.Start()
	c.WaitWhole()
	ingressesServe(c)

	t.Log("the disks are full")
	a.resolve(c, "three")
	held, release = a.hold("/certZ/")
	c.MustLeader().In(t).Apply(fmt.Sprintf(acmeIngress, "three"))
	wait(t, held, "the leader asks for the certificate")
	for _, s := range c.Servers {
		// The second part takes what is reserved for root, and ends when the disk is full.
		_, _ = s.Run("sh", "-c", fmt.Sprintf("cd %s && fallocate -l $(df --output=avail -B1 . | tail -1) ballast; head -c 1G /dev/zero >> ballast", s.DataDir))
	}
	release()
	harness.Eventually(t, soon, "the log says that the certificate could not be written", func() error {
		for _, s := range c.Servers {
			if s.InLog("writing the certificate into the Secret default/three: ") > 0 {
				return nil
			}
		}
		return errors.New("no server says so")
	})
	for _, s := range c.Servers {
		testenv.Check(t, testenv.Err(s.Run("rm", s.DataDir+"/ballast")))
	}
	a.served(c.Servers, "three")
	a.ordered(3)
}

// ingressesServe waits until each node's ingress is ready. A node that has just started again is not asked before an
// order begins, and the authority may ask it.
func ingressesServe(c *Cluster) {
	c.T.Helper()
	harness.Eventually(c.T, soon, "the ingresses of all nodes are ready", func() error {
		out, err := c.MustLeader().In(c.T).Try("-n", "kube-system", "get", "endpointslices", "-l", "kubernetes.io/service-name=ingress",
			"-o", "jsonpath={.items[*].endpoints[?(@.conditions.ready==true)].nodeName}")
		if n := len(strings.Fields(out)); err == nil && n != len(c.Servers) {
			err = fmt.Errorf("%d of %d: %q", n, len(c.Servers), out)
		}
		return err
	})
}

// hosts is how many hosts each Ingress has, one for each node.
const hosts = 3

func hostOf(name string, i int) string { return fmt.Sprintf("%s-%d.example", name, i) }

func wait(t *testing.T, held <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-held:
	case <-time.After(soon):
		t.Fatalf("%s: it does not", what)
	}
}

// expectEvent waits for an event of an Ingress.
func expectEvent(c *Cluster, name, reason string, want ...string) {
	c.T.Helper()
	harness.Eventually(c.T, soon, "an event "+reason, func() error {
		out, err := c.Servers[0].In(c.T).Try("get", "events", "--field-selector", "involvedObject.name="+name+",reason="+reason, "-o", "jsonpath={.items[*].message}")
		for _, w := range want {
			if err == nil && !strings.Contains(out, w) {
				err = fmt.Errorf("no %q in %q", w, out)
			}
		}
		return err
	})
}

// authority is pebble behind a gate that can hold requests.
type authority struct {
	*testing.T
	dir, program string
	files        testca.Files
	site         *harness.Site
	running      *exec.Cmd

	mu     sync.Mutex
	orders int
	prefix string // of paths that are held
	held   chan struct{}
	goOn   chan struct{}
}

func newAuthority(t *testing.T) *authority {
	a := &authority{T: t, dir: t.TempDir()}
	a.program = filepath.Join(a.dir, "pebble")
	acme.Build(t, acme.Pebble, a.program)
	acme.Build(t, acme.DNS, filepath.Join(a.dir, "dns"))
	ca, err := testca.New(filepath.Join(a.dir, "ca"))
	testenv.NoError(t, err)
	a.files, err = ca.Issue("pebble", harness.OutsideIP, "127.0.0.1")
	testenv.NoError(t, err)
	return a
}

// serve starts the DNS server and the gate on the site.
func (a *authority) serve(site *harness.Site) {
	a.site = site
	a.start(filepath.Join(a.dir, "dns"), "-dnsserver", ":"+dnsPort, "-management", ":"+dnsManagement, "-http01", "", "-https01", "", "-tlsalpn01", "", "-doh", "", "-defaultIPv6", "")
	pair := testenv.Must(tls.LoadX509KeyPair(a.files.Cert, a.files.Key))(a)
	var l net.Listener
	testenv.NoError(a, site.Do(func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(harness.OutsideIP, gatePort))
		return err
	}))
	dial := func(ctx context.Context, network, address string) (c net.Conn, err error) {
		err = site.Do(func() (err error) {
			c, err = new(net.Dialer).DialContext(ctx, network, address)
			return err
		})
		return c, err
	}
	to := &url.URL{Scheme: "https", Host: "127.0.0.1:" + pebblePort}
	pass := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(to)
			r.Out.Host = r.In.Host
		},
		Transport:      &http.Transport{DialContext: dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true},
		ModifyResponse: a.count,
		ErrorLog:       slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	server := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			a.gate(r)
			pass.ServeHTTP(w, r.WithContext(context.WithoutCancel(r.Context())))
		}),
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	ended := make(chan error, 1) // one: Serve's only result
	go func() { ended <- server.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{pair}})) }()
	a.Cleanup(func() {
		_ = server.Close()
		testenv.ErrorIs(a, <-ended, http.ErrServerClosed, "the server ended")
	})
}

// count counts what the authority took as an order. It refuses one request of twenty for its nonce, as the protocol
// allows, and its client sends that again.
func (a *authority) count(r *http.Response) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if r.Request.URL.Path == "/order-plz" && r.StatusCode == http.StatusCreated {
		a.orders++
	}
	return nil
}

// gate holds a request where it is to be held.
func (a *authority) gate(r *http.Request) {
	a.mu.Lock()
	var wait chan struct{}
	if a.prefix != "" && strings.HasPrefix(r.URL.Path, a.prefix) {
		a.prefix, wait = "", a.goOn
		close(a.held)
	}
	a.mu.Unlock()
	if wait != nil {
		<-wait
	}
}

// hold stops the next request for paths that begin like that: held is closed when it is there, and release lets it go
// on, also when its client has gone.
func (a *authority) hold(prefix string) (held <-chan struct{}, release func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.prefix, a.held, a.goOn = prefix, make(chan struct{}), make(chan struct{})
	release = sync.OnceFunc(func() { close(a.goOn) })
	a.Cleanup(release)
	return a.held, release
}

// start runs a program on the site until the test ends.
func (a *authority) start(program string, args ...string) *exec.Cmd {
	log := testenv.Must(os.OpenFile(program+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644))(a)
	defer log.Close()
	c := a.site.Command(context.Background(), program, args...)
	c.Env = append(os.Environ(), "PEBBLE_VA_NOSLEEP=1")
	c.Stdout, c.Stderr = log, log
	testenv.NoError(a, c.Start())
	a.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
		if text, err := os.ReadFile(program + ".log"); err == nil && a.Failed() {
			a.Logf("%s:\n%.20000s", filepath.Base(program), text)
		}
	})
	return c
}

func (a *authority) endPebble() {
	if a.running != nil {
		_ = a.running.Process.Kill()
		_ = a.running.Wait()
	}
}

// pebble starts pebble, in the place of one that runs; picky takes no accounts that were not made on its site.
func (a *authority) pebble(picky bool) {
	a.endPebble()
	config := filepath.Join(a.dir, "config.json")
	text := fmt.Sprintf(`{"pebble": {"listenAddress": "127.0.0.1:%s", "managementListenAddress": "127.0.0.1:%s", "certificate": %q, "privateKey": %q, "httpPort": 80, "tlsPort": 443,
		"externalAccountBindingRequired": %t, "retryAfter": {"authz": 1, "order": 1}, "profiles": {"default": {"description": "", "validityPeriod": 7776000}}}}`,
		pebblePort, pebbleManagement, a.files.Cert, a.files.Key, picky)
	testenv.NoError(a, os.WriteFile(config, []byte(text), 0o600))
	a.running = a.start(a.program, "-config", config, "-strict", "-dnsserver", "127.0.0.1:"+dnsPort)
	harness.Eventually(a.T, soon, "pebble answers", func() error {
		_, err := a.curl("-k", "https://127.0.0.1:"+pebblePort+"/dir")
		return err
	})
}

func (a *authority) curl(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
	defer cancel()
	return harness.Output(a.site.Command(ctx, "curl", append([]string{"-sS", "--fail-with-body"}, args...)...))
}

// resolve has the DNS names of an Ingress lead to one node each.
func (a *authority) resolve(c *Cluster, name string) {
	a.Helper()
	for i := range hosts {
		host := hostOf(name, i)
		if out, err := a.curl("-d", fmt.Sprintf(`{"host": "%s.", "addresses": [%q]}`, host, c.Servers[i].IP), "http://127.0.0.1:"+dnsManagement+"/add-a"); err != nil {
			a.Fatal(err, out)
		}
	}
}

// served waits until nodes serve all hosts of an Ingress with a certificate of pebble's.
func (a *authority) served(by []*harness.Server, name string) {
	a.Helper()
	roots := testenv.Must(a.curl("-k", "https://127.0.0.1:"+pebbleManagement+"/roots/0"))(a)
	file := filepath.Join(a.dir, "roots.pem")
	testenv.NoError(a, os.WriteFile(file, []byte(roots), 0o644))
	for _, s := range by {
		for i := range hosts {
			host := hostOf(name, i)
			harness.Eventually(a.T, harness.Longer, fmt.Sprintf("machine %d serves %s with its certificate", s.Number, host), func() error {
				out, err := a.curl("-o", "/dev/null", "-w", "%{ssl_verify_result} %{http_code}", "--cacert", file, "--resolve", host+":443:"+s.IP, "https://"+host+"/")
				if !strings.HasPrefix(out, "0 ") || strings.HasSuffix(out, " 000") {
					return fmt.Errorf("%q: %w", out, err)
				}
				return nil // whatever the status: there is no backend
			})
		}
	}
}

// ordered checks how many orders there were since the test began.
func (a *authority) ordered(want int) {
	a.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	testenv.Equal(a, a.orders, want, "orders:")
}
