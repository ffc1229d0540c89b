// SPDX-License-Identifier: Apache-2.0

// Command gateway runs upstream's conformance suite of the Gateway API against a cluster from this tree, in namespaces
// of its own:
//
//	make gateway-conformance                               profiles GATEWAY-HTTP, GATEWAY-GRPC and GATEWAY-TLS, with the extended features of the GatewayClass
//	make gateway-conformance FOCUS='HTTPRouteWeight'       the tests whose name is that; 'HTTPRoute.*' is a regular expression
//	make gateway-conformance SERVERS=3                     on three servers that run pods
//
// The suite is in a module of its own (test/gateway/suite). It runs outside of the nodes, on their network, where the
// addresses of a pool answer. There is no image registry: an archive in each node's images folder holds echo-basic,
// built from the suite's module, under each name that the suite's manifests have. It needs root, and is no part of a
// release.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// The addresses of the site's network that Gateways have: of the flag's pool, the one that a Gateway asks for (of a
// pool that gives addresses to those alone), and one that is in no pool.
const (
	pool            = "10.77.0.100-10.77.0.199"
	usableAddress   = "10.77.0.220"
	unusableAddress = "10.77.0.240"
	usablePool      = "{apiVersion: coracle.dev/v1alpha1, kind: AddressPool, metadata: {name: static}, spec: {autoAssign: false, addresses: [" + usableAddress + "]}}"
)

// class is the GatewayClass that the cluster brings.
const class = "coracle"

// run is what was asked for.
type run struct {
	folder, focus, version string
	servers                int
	built                  bool
}

func main() {
	harness.FirstProcess()
	var r run
	flag.StringVar(&r.folder, "folder", "build/gateway", "where programs, images and reports go")
	flag.StringVar(&r.focus, "focus", ".*", "a regular expression: the tests whose whole name matches")
	flag.StringVar(&r.version, "version", "unknown", "the version that the report names")
	flag.IntVar(&r.servers, "servers", 1, "how many servers that run pods the cluster has")
	flag.BoolVar(&r.built, "built", false, "use the programs that the last run built")
	flag.Parse()
	signal.Notify(make(chan os.Signal, 1), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP) // it goes on to tidy up; what it runs ends
	good := false
	if !harness.Alone(func(t testing.TB) { good = r.do(t) }) || !good {
		os.Exit(1)
	}
}

// do returns whether every test that ran passed.
func (r run) do(t testing.TB) bool {
	var err error
	r.folder, err = filepath.Abs(r.folder)
	testenv.NoError(t, err)
	p := programs{suite: filepath.Join(r.folder, "conformance.test"), echo: filepath.Join(r.folder, "echo-basic")}
	if !r.built {
		fmt.Fprintln(os.Stderr, "building upstream's suite and the program of its images")
		testenv.NoError(t, p.build(r.folder))
	}
	archive := filepath.Join(r.folder, "images.tar")
	testenv.NoError(t, p.writeImages(archive))
	site := harness.NewSite(t)
	s := site.NewCluster(r.servers, archive, r.folder, "--load-balancer-pool", pool)
	s.Apply(usablePool)
	harness.Eventually(t, harness.Longer, "GatewayClass "+class+" is accepted, and its status has features", func() error { return accepted(s) })
	return r.suite(t, site, s, p)
}

// accepted returns nil when the suite can begin: it reads the features before it waits for anything.
func accepted(s *harness.Server) error {
	out, err := s.TryKubectl("get", "gatewayclass", class, "-o", `jsonpath={.status.conditions[?(@.type=="Accepted")].status} {.status.supportedFeatures[*].name}`)
	if err != nil {
		return err
	}
	if status, features, _ := strings.Cut(out, " "); status != "True" || features == "" {
		return fmt.Errorf("its condition Accepted is %q, its features are %q", status, features)
	}
	return nil
}

// suite runs the tests, prints what became of them, and returns whether all that ran passed.
func (r run) suite(t testing.TB, site *harness.Site, s *harness.Server, p programs) bool {
	config := testenv.Must(os.ReadFile(s.Kubeconfig))(t)
	outside := filepath.Join(r.folder, "kubeconfig")
	text := strings.Replace(string(config), "https://127.0.0.1:", "https://"+s.IP+":", 1)
	if !strings.Contains(text, net.JoinHostPort(s.IP, "6443")) {
		t.Fatalf("%s does not name https://127.0.0.1:6443, which is another address from outside", s.Kubeconfig)
	}
	testenv.NoError(t, os.WriteFile(outside, []byte(text), 0o600))
	report := filepath.Join(r.folder, "report.yaml")
	_ = os.Remove(report)
	log := testenv.Must(os.Create(filepath.Join(r.folder, "suite.log")))(t)
	defer log.Close()
	fmt.Fprintf(os.Stderr, "running the suite; what it says is in %s\n", log.Name())
	c := site.Command(context.Background(), p.suite, "-test.v", "-test.timeout", "0", "-test.run", "^TestConformance$/^("+r.focus+")$",
		"--gateway-class", class, "--conformance-profiles", strings.Join(profiles, ","), "--report-output", report,
		"--usable-address", usableAddress, "--unusable-address", unusableAddress,
		"--organization", "coracle-k8s", "--project", "coracle", "--url", "https://github.com/coracle-k8s/coracle", "--version", r.version,
		"--contact", "https://github.com/coracle-k8s/coracle/issues")
	c.Env = append(os.Environ(), "KUBECONFIG="+outside)
	c.Stdout, c.Stderr = log, log
	ended := c.Run()
	said := testenv.Must(os.ReadFile(log.Name()))(t)
	results, err := readReport(report)
	if err != nil {
		t.Fatalf("%v; the suite ended with: %v\n%s", err, ended, tail(string(said), 20))
	}
	return summary(os.Stdout, results, failures(string(said))) && ended == nil
}
