// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/internal/imagetar"
	"github.com/coracle-k8s/coracle/test/guests"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
	"github.com/coracle-k8s/coracle/test/uml"
)

const (
	// guestFocus and guestLabels are the specs that a node with another kernel is asked: what Services and
	// NetworkPolicies mean.
	guestFocus  = `\[sig-network\] (Services|Netpol) `
	guestLabels = `!(Feature: containsAny SCTPConnectivity) && !Serial && !Disruptive`
	// guestPatience is for a machine on which a system call takes ten times as long.
	guestPatience = 30 * time.Minute
	// onIPVS is in the log of a node whose Services are IPVS'.
	onIPVS = "backend=ipvs"
)

// guestCluster starts a cluster whose one node is a User-Mode Linux with IPVS and nftables, and whose server is an
// ordinary machine beside it. The node's flags say nothing of IPVS: that it takes it is part of what is tried.
func (r run) guestCluster(t testing.TB, archive string, carried []imagetar.Image) *harness.Server {
	modules := uml.ModuleFiles(t, "bridge", "vxlan", "overlay")
	site := harness.NewSite(t)
	site.Needs = append(site.Needs, r.folder)
	server := site.NewMachine().NewServer("--disable-agent", "--disable", "helm-controller,metrics-server,servicelb")
	settings := serveMirror(t, site, r.folder, archive, carried)
	server.Log = filepath.Join(r.folder, "coracle.log")
	_ = os.Remove(server.Log)
	server.Start()
	server.WaitAPI()
	token := testenv.Must(os.ReadFile(server.Seen("server", "agent-token")))(t)
	dir := harness.GuestFolder(t)
	const name, ip = "guest-1", "10.77.0.21" // as harness.Guest has them
	args := fmt.Sprintf("agent --server https://%s:6443 --token %s --data-dir /run/disk/data --node-name %s --node-ip %s --private-registry %s\n",
		server.IP, strings.TrimSpace(string(token)), name, ip, settings)
	for file, text := range map[string]string{"machine.sh": guests.MachineScript, "modules": strings.Join(modules, "\n") + "\n", "args-" + name: args} {
		testenv.NoError(t, os.WriteFile(filepath.Join(dir, file), []byte(text), 0o755))
	}
	// The image that nearly all pods have; the mirror has it and all others, whose import would take the machine
	// minutes.
	testenv.NoError(t, writeImages(filepath.Join(dir, "box.tar"), carried[:1]))
	g := site.NewGuest(dir, harness.GuestOptions{
		Number: 1, Init: filepath.Join(dir, "machine.sh"), Disk: 8 << 30, Memory: 2500,
		Env: []string{"CORACLE=" + server.Coracle(), "SHARED=" + dir, "NFS="},
	})
	log := filepath.Join(dir, "log-"+name)
	t.Cleanup(func() {
		text, _ := os.ReadFile(log)
		_ = os.WriteFile(filepath.Join(r.folder, "node.log"), append(text, g.Console()...), 0o644)
	})
	fmt.Fprintf(os.Stderr, "starting a node in a second kernel; its log is %s\n", log)
	g.Boot()
	harness.Eventually(t, guestPatience, "the node is ready, and serves Services by IPVS", func() error {
		g.Running()
		out, err := server.TryKubectl("get", "node", name, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status} {.spec.taints[*].key}`)
		if err == nil && strings.TrimSpace(out) != "True" {
			err = fmt.Errorf("it is ready: %q", out)
		}
		if text, _ := os.ReadFile(log); err == nil && !strings.Contains(string(text), onIPVS) {
			err = fmt.Errorf("its log does not say %q", onIPVS)
		}
		return err
	})
	return server
}
