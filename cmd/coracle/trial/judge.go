// SPDX-License-Identifier: Apache-2.0

// Package trial decides whether a new version of coracle that runs on trial becomes the current one.
//
// Before the switch an upgrade observes what holds on the machine, the baseline. The candidate observes the same while
// it runs, and commits itself once everything that held before has held for a while (Gate). It never ends a trial
// without a commit: that is the starter's task, so that a candidate that hangs cannot prevent it.
//
// Its goroutines: one of the process while its version is on trial, or while a version that was refused is to be
// reported.
package trial

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Facts are what was observed of a machine at one moment. They are the same before a switch and after it, so that one
// function observes both. The JSON form is the baseline's file: fields are only ever added.
type Facts struct {
	// Failing has the conditions that do not hold, with the reasons. The part of a reason that other machines wrote is
	// printable text.
	Failing map[string]string `json:"failing,omitempty"`
	// Pods are the pods of this machine's node by UID.
	Pods map[string]Pod `json:"pods,omitempty"`
	// Tolerated is for how long all of the node's pods stay on it while it is not Ready; 0 if they all stay for ever.
	Tolerated time.Duration `json:"-"`
	// Boot is the kernel's id of the machine's boot. After another boot all containers are other ones.
	Boot string `json:"boot,omitempty"`
	// Memory is the process' anonymous memory in bytes.
	Memory int64 `json:"memory,omitempty"`
	// FailedShims is how many shims of containers the process could not load when it started.
	FailedShims int `json:"failedShims,omitempty"`
}

// Pod is what the gate compares of a pod.
type Pod struct {
	Name  string `json:"name"` // with its namespace
	Ready bool   `json:"ready"`
	// Containers has the pod's containers by name, also those that prepare it or run beside it.
	Containers map[string]Container `json:"containers,omitempty"`
}

// Container is what the gate compares of a container.
type Container struct {
	ID       string `json:"id"`
	Restarts int32  `json:"restarts,omitempty"`
	// Steady says that it runs, and has not been restarted lately: it is not expected to end by itself.
	Steady bool `json:"steady,omitempty"`
}

// Conditions that Judge adds to those of Facts.Failing.
const (
	condPods       = "pods"
	condContainers = "containers"
	condShims      = "shims"
	condMemory     = "memory"
)

// shownPods is how many pods or containers a reason names.
const shownPods = 3

// Judge returns which conditions keep a candidate from being committed, each with its reason, in a fixed order. A
// condition that did not hold before the switch does not count.
func Judge(before, now Facts) []string {
	failing := maps.Clone(now.Failing)
	if failing == nil {
		failing = map[string]string{}
	}
	if why := podsLost(before.Pods, now.Pods); why != "" && failing[condPods] == "" {
		failing[condPods] = why
	}
	if why := containersLost(before.Pods, now.Pods); why != "" && now.Boot == before.Boot {
		failing[condContainers] = why
	}
	if now.FailedShims > 0 {
		failing[condShims] = fmt.Sprintf("%d could not be loaded, so their containers were ended: the log of coracle says why", now.FailedShims)
	}
	if most := before.Memory + before.Memory/2; before.Memory > 0 && now.Memory > most {
		failing[condMemory] = fmt.Sprintf("the process has %d MB, more than 1.5 times the %d MB of the version before", now.Memory>>20,
			before.Memory>>20)
	}
	var out []string
	for _, condition := range slices.Sorted(maps.Keys(failing)) {
		if _, failed := before.Failing[condition]; !failed {
			out = append(out, condition+": "+failing[condition])
		}
	}
	return out
}

// podsLost names pods that were ready before, still exist, and are not ready now.
func podsLost(before, now map[string]Pod) string {
	var lost []string
	for uid, pod := range before {
		if p, exists := now[uid]; pod.Ready && exists && !p.Ready {
			lost = append(lost, pod.Name)
		}
	}
	return named("no longer ready: ", lost)
}

// containersLost names containers of pods that were ready before and still exist, if others have taken their place. One
// that had been restarted shortly before is expected to be restarted again.
func containersLost(before, now map[string]Pod) string {
	var lost []string
	for uid, pod := range before {
		p, exists := now[uid]
		if !pod.Ready || !exists {
			continue
		}
		for name, c := range pod.Containers {
			if n, known := p.Containers[name]; c.Steady && known && (n.ID != c.ID || n.Restarts > c.Restarts) {
				lost = append(lost, fmt.Sprintf("%s of %s", name, pod.Name))
			}
		}
	}
	return named("restarted: ", lost)
}

// named returns the first of some names behind a text, and "" if there are none.
func named(text string, names []string) string {
	if len(names) == 0 {
		return ""
	}
	slices.Sort(names)
	more := ""
	if n := len(names) - shownPods; n > 0 {
		more = fmt.Sprintf(", and %d more", n)
	}
	return text + strings.Join(names[:min(len(names), shownPods)], ", ") + more
}
