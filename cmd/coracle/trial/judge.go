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
	// Memory is the process' anonymous memory in bytes.
	Memory int64 `json:"memory,omitempty"`
}

// Pod is what the gate compares of a pod.
type Pod struct {
	Name  string `json:"name"` // with its namespace
	Ready bool   `json:"ready"`
}

// Conditions that Judge adds to those of Facts.Failing.
const (
	condPods   = "pods"
	condMemory = "memory"
)

// shownPods is how many pods a reason names.
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
	if len(lost) == 0 {
		return ""
	}
	slices.Sort(lost)
	more := ""
	if n := len(lost) - shownPods; n > 0 {
		more = fmt.Sprintf(", and %d more", n)
	}
	return fmt.Sprintf("no longer ready: %s%s", joined(lost[:min(len(lost), shownPods)]), more)
}
