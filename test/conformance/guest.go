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

// guestCluster starts a cluster whose nodes are User-Mode Linuxes with IPVS and nftables, and whose server is an
// ordinary machine beside them. The nodes' flags say nothing of IPVS: that they take it is part of what is tried.
func (r run) guestCluster(t testing.TB, archive string, carried []imagetar.Image) *harness.Server {
	modules := uml.ModuleFiles(t, "bridge", "vxlan", "overlay")
	site := harness.NewSite(t)
	site.Needs = append(site.Needs, r.folder)
	server := site.NewMachine().NewServer("--disable-agent", "--disable", "helm-controller,metrics-server,servicelb")
	settings := serveMirror(t, site, r.folder, archive, carried)
	server.Log = filepath.Join(r.folder, "coracle.log")
	_ = os.Remove(server.Log)
	server.StartAPI()
	token := testenv.Must(os.ReadFile(server.Seen("server", "agent-token")))(t)
	dir := harness.GuestFolder(t)
	flags := fmt.Sprintf("agent --server https://%s:6443 --token %s --data-dir /run/disk/data --private-registry %s",
		server.IP, strings.TrimSpace(string(token)), settings)
	for file, text := range map[string]string{"machine.sh": guests.MachineScript, "modules": strings.Join(modules, "\n") + "\n"} {
		testenv.NoError(t, os.WriteFile(filepath.Join(dir, file), []byte(text), 0o755))
	}
	// The image that nearly all pods have; the mirror has it and all others, whose import would take the machine
	// minutes.
	testenv.NoError(t, writeImages(filepath.Join(dir, "box.tar"), carried[:1]))
	for number := range r.servers {
		r.guestNode(t, server, dir, number+1, flags)
	}
	return server
}

// guestNode starts a node with what is in dir, and waits until it serves Services by IPVS.
func (r run) guestNode(t testing.TB, server *harness.Server, dir string, number int, flags string) {
	g := server.Machine.Site.NewGuest(dir, harness.GuestOptions{
		Number: number, Init: filepath.Join(dir, "machine.sh"), Disk: 8 << 30, Memory: 2500,
		Env: []string{"CORACLE=" + server.Coracle(), "SHARED=" + dir, "NFS="},
	})
	testenv.NoError(t, os.WriteFile(filepath.Join(dir, "args-"+g.Name), fmt.Appendf(nil, "%s --node-name %s --node-ip %s\n", flags, g.Name, g.IP), 0o600))
	log := filepath.Join(dir, "log-"+g.Name)
	t.Cleanup(func() {
		text, _ := os.ReadFile(log)
		_ = os.WriteFile(filepath.Join(r.folder, g.Name+".log"), append(text, g.Console()...), 0o644)
	})
	fmt.Fprintf(os.Stderr, "starting a node in a second kernel; its log is %s\n", log)
	g.Boot()
	harness.Eventually(t, guestPatience, "the node is ready, and serves Services by IPVS", func() error {
		g.Running()
		out, err := server.TryKubectl("get", "node", g.Name, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status} {.spec.taints[*].key}`)
		if err == nil && strings.TrimSpace(out) != "True" {
			err = fmt.Errorf("it is ready: %q", out)
		}
		if text, _ := os.ReadFile(log); err == nil && !strings.Contains(string(text), onIPVS) {
			err = fmt.Errorf("its log does not say %q", onIPVS)
		}
		return err
	})
}
