//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestMixedVersions: a version and the one before it run in one cluster, whichever is the server that lets the other
// one in, and machines are updated one after the other.
func TestMixedVersions(t *testing.T) {
	older := os.Getenv("CORACLE_OLDER_BIN")
	if older == "" {
		t.Skip("CORACLE_OLDER_BIN names no build of the version before: make e2e-mixed makes one")
	}
	site := harness.NewSite(t)
	first := site.NewMachine().NewServer("--disable-agent")
	first.Bin = older
	first.StartAPI()
	newer := site.NewMachine().NewPeer(first, "--disable-agent") // of this version, let in by the older one
	newer.StartAPI()
	third := site.NewMachine().NewPeer(newer, "--disable-agent") // older, let in by this version
	third.Bin = older
	third.StartAPI()
	servers := []*harness.Server{first, newer, third}
	agents := []*harness.Server{site.NewMachine().NewAgent(newer), site.NewMachine().NewAgent(first)}
	agents[0].Bin = older
	for _, a := range agents {
		a.AddBoxImage()
		a.Start()
	}
	all := append(append([]*harness.Server(nil), servers...), agents...)
	setting := 0
	works := func(what string) {
		t.Helper()
		setting++
		newer.Apply(fmt.Sprintf("{apiVersion: v1, kind: ConfigMap, metadata: {name: coredns-custom, namespace: kube-system}, data: {a.override: %q}}",
			fmt.Sprintf("hosts {\n  192.0.2.%d setting.cluster.local\n  fallthrough\n}", setting)))
		for i, s := range servers {
			s.Creates("configmap", fmt.Sprintf("%s-%d", strings.ReplaceAll(what, " ", "-"), i))
		}
		for _, a := range agents {
			harness.Eventually(t, harness.Soon, what+": the nodes are ready", func() error { return newer.NodeReady(a) })
		}
		harness.Eventually(t, harness.Soon, what+": all machines know one another", func() error { return harness.KnowOneAnother(all, "alive alive alive alive alive ") })
		harness.Eventually(t, harness.Soon, what+": the Service has two endpoints", func() error { return endpoints(newer, 2) })
		for _, pod := range strings.Fields(newer.Kubectl("get", "pods", "-l", "app=d", "-o", "name")) {
			newer.Kubectl("exec", pod, "--", "testbox", "get", "http://127.0.0.1:8080/")
			harness.Eventually(t, harness.Soon, what+": a setting reaches every node", func() error {
				got, err := newer.TryKubectl("exec", pod, "--", "testbox", "lookup", "setting.cluster.local")
				if want := fmt.Sprintf("192.0.2.%d", setting); err == nil && strings.TrimSpace(got) != want {
					err = fmt.Errorf("%q, want %q", got, want)
				}
				return err
			})
		}
	}
	newer.Apply(spreadService)
	works("mixed")
	for _, s := range all { // as an operator updates them
		if s.Bin == "" {
			continue
		}
		testenv.NoError(t, s.Stop())
		s.Bin = ""
		s.Start()
		if s.Role != "agent" {
			s.WaitAPI()
		}
		works("updated " + s.NodeName())
	}
}
