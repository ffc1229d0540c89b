// SPDX-License-Identifier: Apache-2.0

// Command conformance runs upstream's conformance suite against a cluster of one node, or of several servers, from this
// tree, in namespaces of its own:
//
//	make conformance                                  all specs of Conformance that may run side by side, then the serial ones
//	make conformance FOCUS='ConfigMap should be'      those whose name matches
//	make conformance SERVERS=3                        on three servers that run pods
//	make conformance MEMORY=1                         prints what the server takes in memory before the specs and after them
//	make guest-conformance                            those of Services and NetworkPolicies, on a node in a second kernel, which has IPVS; SERVERS=3: on three
//
// The suite and the programs in its images are built from upstream's module. There is no image registry: an archive in
// the node's images folder holds an image for each name that the specs ask for. It needs root, and is no part of a
// release.
package main

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/proc"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// leaving is why a spec is left out.
type leaving struct {
	spec, reason string
	oneNode      bool // it can pass where there are several nodes
}

// leftOut are specs that cannot pass here, by a part of their names, with the reason.
var leftOut = []leaving{
	{spec: "Conformance Tests should have at least two untainted nodes", reason: "the cluster has one", oneNode: true},
	{spec: "Daemon set should rollback without unnecessary restarts", reason: "it wants two nodes", oneNode: true},
	{spec: "read only busybox container should not write to root filesystem", reason: "it compares a message of busybox' shell, and the image has bash"},
}

// run is what was asked for.
type run struct {
	folder, ldflags, focus, skip, labels string
	processes, servers                   int
	buildOnly, built, guest, memory      bool
}

func main() {
	harness.FirstProcess()
	var r run
	flag.StringVar(&r.folder, "folder", "build/conformance", "where programs, images and reports go")
	flag.StringVar(&r.ldflags, "ldflags", "", "linker flags that say the version")
	flag.StringVar(&r.focus, "focus", "", "a regular expression: specs whose name matches")
	flag.StringVar(&r.labels, "labels", "Conformance", "a filter of Ginkgo's: specs whose labels match")
	flag.StringVar(&r.skip, "skip", "", "a regular expression: specs to leave out")
	flag.IntVar(&r.processes, "processes", 4, "how many specs run side by side")
	flag.IntVar(&r.servers, "servers", 1, "how many servers that run pods the cluster has; with -guest, how many nodes")
	flag.BoolVar(&r.buildOnly, "build", false, "build programs and images, and end")
	flag.BoolVar(&r.built, "built", false, "use the programs that the last run built")
	flag.BoolVar(&r.guest, "guest", false, "run the specs of Services and NetworkPolicies on a node whose kernel is a User-Mode Linux with IPVS")
	flag.BoolVar(&r.memory, "memory", false, "print what the first server takes in memory before the specs and ten minutes after them, a quarter of an hour in all")
	flag.Parse()
	signal.Notify(make(chan os.Signal, 1), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP) // it goes on to tidy up; what it runs ends
	good := false
	if !harness.Alone(func(t testing.TB) { good = r.do(t) }) || !good {
		os.Exit(1)
	}
}

// do returns whether every spec that ran passed.
func (r run) do(t testing.TB) bool {
	root, err := os.Getwd()
	testenv.NoError(t, err)
	r.folder, err = filepath.Abs(r.folder)
	testenv.NoError(t, err)
	programs := testenv.Must(findPrograms(root, r.folder))(t)
	if !r.built {
		fmt.Fprintln(os.Stderr, "building upstream's suite and the programs of its images")
		testenv.NoError(t, programs.build(root, r.folder, r.ldflags))
	}
	archive := filepath.Join(r.folder, "images.tar")
	images := testenv.Must(desiredImages(programs))(t)
	testenv.NoError(t, writeImages(archive, images))
	if r.buildOnly {
		return true
	}
	if r.guest {
		r.focus = cmp.Or(r.focus, guestFocus)
		s := r.guestCluster(t, archive, images)
		return summary(os.Stdout, r.suite(t, s, programs, "guest", 1, guestLabels))
	}
	site := harness.NewSite(t)
	site.Needs = append(site.Needs, r.folder)
	s := site.NewCluster(r.servers, archive, r.folder, "--private-registry", serveMirror(t, site, r.folder, archive, images))
	for _, l := range r.leftOut() {
		fmt.Printf("left out  %s\n    %s\n", l.spec, l.reason)
	}
	r.printMemory(s, "five minutes after the start", 5*time.Minute)
	side := r.suite(t, s, programs, "parallel", r.processes, "("+r.labels+`) && !Serial && !Disruptive`)
	serial := r.suite(t, s, programs, "serial", 1, "("+r.labels+`) && (Serial || Disruptive)`)
	r.printMemory(s, "after the specs", 0)
	r.printMemory(s, "ten minutes later", 10*time.Minute)
	return summary(os.Stdout, append(side, serial...))
}

// printMemory waits and then prints what a server takes in memory, if that was asked for.
func (r run) printMemory(s *harness.Server, moment string, wait time.Duration) {
	if !r.memory {
		return
	}
	time.Sleep(wait) // what Go gives back it gives back within minutes
	fmt.Printf("memory %s: %.0f MB, of which %.0f MB are anonymous\n", moment, proc.StatusMB(s.Pid(), "VmRSS:"), proc.StatusMB(s.Pid(), "RssAnon:"))
}

// leftOut are those of the cluster's size.
func (r run) leftOut() []leaving {
	return slices.DeleteFunc(slices.Clone(leftOut), func(l leaving) bool { return l.oneNode && r.servers > 1 })
}

// suite runs the specs that the labels name and returns what became of each.
func (r run) suite(t testing.TB, s *harness.Server, p Programs, name string, processes int, labels string) []spec {
	bin := filepath.Join(s.Dir, "bin")
	testenv.NoError(t, os.MkdirAll(bin, 0o755))
	for _, name := range []string{"kubectl", "ctr"} {
		if err := os.Symlink(s.Coracle(), filepath.Join(bin, name)); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
	}
	s.Env = append(s.Env, "PATH="+bin+":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	report := name + ".json"
	skip := r.skip
	for _, l := range r.leftOut() {
		skip = strings.Trim(skip+"|"+regexp.QuoteMeta(l.spec), "|")
	}
	_ = os.Remove(filepath.Join(r.folder, report))
	args := []string{
		"--procs", strconv.Itoa(processes), "-v", "--silence-skips", "--no-color", "--grace-period", "10s", "--timeout", "24h", "--output-dir", r.folder, "--json-report", report,
		"--label-filter", labels, "--focus", r.focus, "--skip", skip, "--flake-attempts", "1", p.Suite, "--",
		"--provider", "skeleton", "--kubeconfig", s.Kubeconfig, "--kubectl-path", filepath.Join(bin, "kubectl"), "--allowed-not-ready-nodes", "0",
		"--e2e-output-dir", s.Dir, "--num-nodes", strconv.Itoa(r.servers),
	}
	out := testenv.Must(os.Create(filepath.Join(r.folder, name+".log")))(t)
	defer out.Close()
	fmt.Fprintf(os.Stderr, "running the %s specs; what they say is in %s\n", name, out.Name())
	c := s.Command(context.Background(), p.Ginkgo, args...)
	c.Stdout, c.Stderr = out, out
	failed := c.Run() // whose meaning the report has
	specs, err := readReport(filepath.Join(r.folder, report))
	testenv.Require(t, err == nil, "%v; the suite ended with: %v", err, failed)
	return specs
}
