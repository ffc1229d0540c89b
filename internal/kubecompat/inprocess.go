// SPDX-License-Identifier: Apache-2.0

package kubecompat

import (
	"strings"

	"github.com/spf13/pflag"
	cliflag "k8s.io/component-base/cli/flag"
)

// reasonBySet holds the reasons why whole sections of a leader-only component's flags are refused, by upstream's name
// of the section.
var reasonBySet = map[string]string{
	"secure serving": "this component has no port of its own here; its metrics and health are the API server's",
	"authentication": "this component has no port of its own here, so it authenticates no requests",
	"authorization":  "this component has no port of its own here, so it authorizes no requests",
	"metrics":        "the process has one set of metrics; set it on the API server",
	"logs":           "the process has one log; set it with coracle's own flags",
	"feature gate":   "the process has one set of feature gates; set them on the API server",
}

// reasonByName holds the reasons why single flags in other sections are refused.
var reasonByName = map[string]string{
	"kubeconfig":                   "this component speaks to the API server in memory",
	"master":                       "this component speaks to the API server in memory",
	"kube-api-content-type":        "this component speaks to the API server in memory",
	"authentication-kubeconfig":    "this component has no port of its own here, so it authenticates no requests",
	"feature-gates":                reasonBySet["feature gate"],
	"emulated-version":             "the process has one emulated version; set it on the API server",
	"min-compatibility-version":    "the process has one compatibility version; set it on the API server",
	"emulation-forward-compatible": "the process has one emulated version; set it on the API server",
	"write-config-to":              "upstream writes the file and exits, which would end the whole cluster process",
	"profiling":                    "this component has no port of its own here to serve profiles on",
	"contention-profiling":         "this component has no port of its own here to serve profiles on",
}

const reasonLeaderElection = "this component runs where Raft leads; there is no lease to tune"

// harmlessValues are values of flags that request behaviour which is fixed here. Hardening guides set some of them.
var harmlessValues = map[string][]string{
	"leader-elect":         {"false"},
	"profiling":            {"false"},
	"contention-profiling": {"false"},
	"secure-port":          {"0"},
	"bind-address":         {"127.0.0.1", "::1", "localhost"},
}

// RefusedInProcess returns the flags that a component cannot honour when it runs inside this process for a term of
// leadership: ports, kubeconfigs, leases, logging, metrics and feature gates.
func RefusedInProcess(sets cliflag.NamedFlagSets) map[string]Refusal {
	refused := map[string]Refusal{}
	for section, fs := range sets.FlagSets {
		fs.VisitAll(func(f *pflag.Flag) {
			reason := reasonBySet[section]
			if r, ok := reasonByName[f.Name]; ok {
				reason = r
			}
			if strings.HasPrefix(f.Name, "leader-elect") || strings.HasPrefix(f.Name, "leader-migration") ||
				f.Name == "enable-leader-migration" {
				reason = reasonLeaderElection
			}
			if reason != "" {
				refused[f.Name] = Refusal{Reason: reason, Harmless: harmlessValues[f.Name]}
			}
		})
	}
	return refused
}
