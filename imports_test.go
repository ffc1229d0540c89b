// SPDX-License-Identifier: Apache-2.0

// Package coracle holds no code: this test keeps the dependencies between the project's folders an acyclic graph.
package coracle

import (
	"bufio"
	"bytes"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

const module = "github.com/coracle-k8s/coracle/"

// allowed says which folder may import which, and why. internal/ holds leaves that anybody may import; a leaf
// imports other leaves only. Test packages under test/ may import anything.
var allowed = map[string]map[string]string{
	"cmd": {
		"server":  "`coracle server` runs one",
		"agent":   "`coracle server` and `coracle agent` run one",
		"content": "`coracle agent` shares the content of images",
		"gossip":  "`coracle agent` makes its machine a member",
		"cni":     "the helper program is the CNI plugin; uninstalling removes what the pod network made",

		"ingress": "coracle-ingress is the ingress proxy",
		"joining": "commands make, list and read tokens; `coracle agent` joins",

		"controllers": "the program that runs Helm speaks the controller's protocol (helmcharts/helmjob)",

		"vip": "the flags of the virtual address; uninstalling removes it",

		"localvolume": "`coracle agent` keeps the folders of local volumes",

		"console": "`coracle console` serves one",
	},
	"server": {
		"raftstore":   "the API server's only database",
		"gossip":      "a server is a member",
		"scheduler":   "runs with leadership",
		"controllers": "run with leadership",
		"ingress":     "each server compiles the table of the nodes' ingress proxies",
		"joining":     "a server answers machines that join, and admits them",
		"nodetunnel":  "a server's end of the nodes' connections",
		"vip":         "servers hold the virtual address",
		"console":     "a server may serve one",
		"localvolume": "a server asks nodes for folders",
		"content":     "a server knows which machines have which content",
	},
	"agent": {
		"cni":   "the agent answers the CNI plugin",
		"proxy": "the node's Service data plane",
		"dns":   "the node's cluster DNS",

		"netpolicy": "the node enforces NetworkPolicies",
		"ingress":   "the agent feeds the ingress proxy",

		"joining":     "a node knows a server by its certificate",
		"nodetunnel":  "a node's end of its connection to a server",
		"vip":         "a node announces load balancer addresses by the same means",
		"localvolume": "a node makes the folders of local volumes",
		"content":     "pulls get layers from other machines",
	},
	"scheduler": {
		"controllers": "both share one term's informers, kept in controllers/term",
	},
	"controllers": {
		"ingress":     "the leader writes what follows from Ingresses",
		"localvolume": "the leader asks nodes for the folders of local volumes",
	},
	"gossip": {
		"joining": "a member knows servers by what the join protocol says of them",
	},
	"content": {
		"gossip":  "machines recognise one another as its members do, and are reached at the members' addresses",
		"joining": "a machine knows a server by its certificate",
	},
	"console": {
		"controllers": "its child process for Helm speaks the protocol of that of charts (helmcharts/helmjob)",
	},
	"raftstore": {}, "ingress": {}, "cni": {}, "proxy": {}, "dns": {}, "netpolicy": {},
	"joining": {}, "nodetunnel": {}, "vip": {}, "localvolume": {},
	"internal": {},
}

// noLeaf lists folders that hold programs or what tests share: only tests import them.
var noLeaf = []string{"cmd", "test", "packaging"}

func TestImportsAreThoseAllowed(t *testing.T) {
	out, err := exec.Command("go", "list", "-e", "-f", `{{.ImportPath}}:{{range .Imports}} {{.}}{{end}}`, "./...").Output()
	testenv.NoError(t, err, "go list")
	edges := map[string]map[string]string{} // folder → folder → an example
	packages := 0
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		from, imports, _ := strings.Cut(s.Text(), ":")
		packages++
		for imp := range strings.FieldsSeq(imports) {
			a, b := folder(from), folder(imp)
			if a == "" || b == "" || a == b {
				continue
			}
			if edges[a] == nil {
				edges[a] = map[string]string{}
			}
			edges[a][b] = from + " → " + imp
		}
	}
	testenv.Require(t, packages >= 3, "go list found %d packages only:\n%s", packages, out)
	for _, a := range slices.Sorted(maps.Keys(edges)) {
		for _, b := range slices.Sorted(maps.Keys(edges[a])) {
			switch {
			case a == "test", b == "internal" && a != "test":
			case slices.Contains(noLeaf, b):
				t.Errorf("%s: nothing imports %s/", edges[a][b], b)
			case allowed[a][b] == "":
				t.Errorf("%s: %s/ may not import %s/; if it must, say why in imports_test.go", edges[a][b], a, b)
			}
		}
	}
	for a := range allowed {
		testenv.Equal(t, reach(a, a, map[string]bool{}), "", "the allowed imports have a cycle:")
	}
}

// folder is the top-level folder of one of our packages, or "".
func folder(path string) string {
	rest, inModule := strings.CutPrefix(path, module)
	if !inModule {
		return ""
	}
	top, _, _ := strings.Cut(rest, "/")
	return top
}

// reach returns a path from a back to goal, or "".
func reach(a, goal string, seen map[string]bool) string {
	for b := range allowed[a] {
		if b == goal {
			return a + " → " + b
		}
		if !seen[b] {
			seen[b] = true
			if p := reach(b, goal, seen); p != "" {
				return a + " → " + p
			}
		}
	}
	return ""
}
