//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// traffic is requests without a pause, from pods and hosts, each with an account of what has become of it: who counts
// what succeeded alone finds no request that failed.
type traffic struct {
	testing.TB
	sources []source
	began   time.Time
}

// source is one testbox load: url answers on a machine.
type source struct {
	name string
	on   *harness.Machine
	url  string
}

// account is that of test/testbox.
type account struct {
	Target       string
	Done, Failed int
	Longest      time.Duration
	Errors       map[string]int
}

// firstLoadPort is where the first load answers, and the one after it at the next port: no two on one machine may have
// the same.
const firstLoadPort = 7070

var loads atomic.Int64 // that have begun, in all scenarios

// fromPod begins in a pod of a node. Its account is read from the node, which always reaches it.
func (x *traffic) fromPod(s, node *harness.Server, pod, ip, patience string, targets ...string) {
	x.Helper()
	x.begin(source{pod, node.Machine, host(ip)}, patience, targets, func(command string) error {
		_, err := s.TryKubectl("exec", pod, "--", "sh", "-c", command)
		return err
	})
}

// fromHost begins on a node itself.
func (x *traffic) fromHost(node *harness.Server, patience string, targets ...string) {
	x.Helper()
	x.begin(source{node.NodeName(), node.Machine, "127.0.0.1"}, patience, targets, func(command string) error {
		_, err := node.Run("sh", "-c", strings.ReplaceAll(command, "testbox", harness.Box(x)))
		return err
	})
}

func (x *traffic) begin(from source, patience string, targets []string, run func(string) error) {
	x.Helper()
	port := firstLoadPort + loads.Add(1) - 1
	command := fmt.Sprintf("setsid testbox load %d %s '%s' >/dev/null 2>&1 </dev/null &", port, patience, strings.Join(targets, "' '"))
	// A second one ends by itself, since the first one has its port.
	harness.Eventually(x, patient, "traffic from "+from.name+" begins", func() error { return run(command) })
	from.url = fmt.Sprintf("http://%s:%d", from.url, port)
	if x.sources == nil {
		x.began = time.Now()
	}
	x.sources = append(x.sources, from)
}

func (from source) accounts(path string) ([]account, error) {
	out, err := from.on.Run(harness.Box(from.on.T), "get", from.url+path, "20")
	if err != nil {
		return nil, err
	}
	var all []account
	for line := range strings.Lines(out) {
		var a account
		if err := json.Unmarshal([]byte(line), &a); err != nil {
			return nil, fmt.Errorf("%q: %w", line, err)
		}
		all = append(all, a)
	}
	return all, nil
}

// goesOn waits until each target has answered each source so many times more.
func (x *traffic) goesOn(what string, times int) {
	x.Helper()
	for _, from := range x.sources {
		var before []account
		harness.Eventually(x, patient, what+": traffic from "+from.name+" goes on", func() error {
			now, err := from.accounts("/")
			if err != nil {
				return err
			}
			if before == nil {
				before = now
			}
			var errs []error
			for i, a := range now {
				if a.Done < before[i].Done+times {
					errs = append(errs, fmt.Errorf("%s: %d done, %d before, %d failed: %v", a.Target, a.Done, before[i].Done, a.Failed, a.Errors))
				}
			}
			return errors.Join(errs...)
		})
	}
}

// end ends it, once it goes on, and says for how long nothing succeeded at one of the targets at most. Targets that
// begin with whole may have had no request that failed.
func (x *traffic) end(what, whole string) {
	x.Helper()
	x.goesOn(what, 20)
	done := 0
	var longest account
	for _, from := range x.sources {
		var all []account
		harness.Eventually(x, patient, "the accounts of "+from.name, func() (err error) {
			all, err = from.accounts("/")
			return err
		})
		_, _ = from.accounts("/end") // who does not read its answer in time asks a process that has ended
		for _, a := range all {
			done += a.Done
			if a.Longest > longest.Longest {
				longest = a
				longest.Target = from.name + " to " + a.Target
			}
			switch {
			case a.Failed == 0:
			case strings.HasPrefix(a.Target, whole):
				x.Errorf("%s: from %s to %s %d failed of %d: %v", what, from.name, a.Target, a.Failed, a.Done+a.Failed, a.Errors)
			default:
				x.Logf("%s: from %s to %s %d failed of %d: %v", what, from.name, a.Target, a.Failed, a.Done+a.Failed, a.Errors)
			}
		}
	}
	x.Logf("%s: %d requests were answered in %v; nothing was for at most %v, from %s", what, done, time.Since(x.began).Round(time.Second), longest.Longest.Round(time.Millisecond), longest.Target)
}

// served waits until a node's rules lead to an endpoint of a Service.
func served(t testing.TB, node *harness.Server, url string) {
	t.Helper()
	testenv.Must(node.Run(harness.Box(t), "get", url, "120"))(t)
}

// targets are two kinds for a mesh's pod: connections to its own addresses and to its Service's, one that stays open
// and one for each request.
func (m *mesh) targets(j int) (out []string) {
	m.Helper()
	services := strings.Fields(m.nodes[0].Kubectl("get", "service", fmt.Sprintf("box-%d", j), "-o", "jsonpath={.spec.clusterIPs[*]}"))
	for f, ip := range m.pods[j] {
		out = append(out, "tcp://"+host(ip)+":9", "tcp://"+host(services[f])+":9", "http://"+host(ip)+":8080/", "http://"+host(services[f])+"/")
	}
	return out
}

// crossing is traffic from the first pod to the second one and back, and from the third node's host to both.
func (m *mesh) crossing(patience string) *traffic {
	m.Helper()
	x := &traffic{TB: m.T}
	first, second := m.targets(0), m.targets(1)
	x.fromPod(m.nodes[0], m.nodes[0], "box-0", m.pods[0][0], patience, second...)
	x.fromPod(m.nodes[0], m.nodes[1], "box-1", m.pods[1][0], patience, first...)
	x.fromHost(m.nodes[2], patience, append(first, second...)...)
	x.goesOn("before anything happens", 5)
	return x
}
