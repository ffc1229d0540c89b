// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/klog/v2"

	"github.com/coracle-k8s/coracle/internal/convert"
)

// reporter reports why this node cannot reach others' pods. Each field is the text that was reported last, or "" where
// there is no error.
type reporter struct {
	log  klog.Logger
	send func(error) // Options.Report

	underlay, peers, tunnelErrors, backend, setup string
}

// reportUnderlay reports when the interface to other nodes is lost, and when it is found again.
func (r *reporter) reportUnderlay(err error) {
	now := ""
	if err != nil {
		now = err.Error()
	}
	if err != nil && now != r.underlay {
		r.log.Error(err, "Pods of other nodes may not be reached; those of this node reach one another")
	}
	r.report(&r.underlay, now, "", "The interface to other nodes is there again")
}

// reportPeers reports which nodes' pods cannot be reached for a reason that waiting does not remove, when that has
// changed.
func (r *reporter) reportPeers(unreachable []unreachablePeer) {
	texts := convert.Slice(unreachable, func(u unreachablePeer) string { return fmt.Sprintf("node %s: %s", u.peer, u.reason) })
	r.report(&r.peers, strings.Join(texts, "; "), "Pods of some nodes cannot be reached from this one",
		"Nothing keeps this node from reaching the pods of all others any more")
}

// reportTunnelErrors reports for which nodes the kernel rejects routes and entries, when that has changed.
func (r *reporter) reportTunnelErrors(errs map[string]error) {
	texts := convert.Slice(slices.Sorted(maps.Keys(errs)), func(peer string) string {
		return fmt.Sprintf("node %s: the kernel takes no way to it: %v", peer, errs[peer])
	})
	r.report(&r.tunnelErrors, strings.Join(texts, "; "), "Pods of some nodes cannot be reached from this one; it is tried again",
		"The kernel takes the ways to all nodes again")
}

// reportBackend reports that the cluster requests a back end that cannot be used, when that has changed.
func (r *reporter) reportBackend(reason string) {
	r.report(&r.backend, reason, "The network back end is not changed", "")
}

// reportSetup reports that the pod network could not be set up, when that has changed. The caller logs the error.
func (r *reporter) reportSetup(err error) {
	now := ""
	if err != nil {
		now = "the pod network could not be set up, and it is tried again: " + err.Error()
	}
	r.report(&r.setup, now, "", "")
}

// report stores an error's text, or "" if there is none. When it has changed, report logs one of two messages, unless
// that is empty, and passes all errors on.
func (r *reporter) report(last *string, now, wrong, over string) {
	if now == *last {
		return
	}
	*last = now
	switch {
	case now != "" && wrong != "":
		r.log.Info(wrong, "why", now)
	case now == "" && over != "":
		r.log.Info(over)
	}
	if r.send == nil {
		return
	}
	var errs []error
	for _, text := range []string{r.underlay, r.peers, r.tunnelErrors, r.backend, r.setup} {
		if text != "" {
			errs = append(errs, errors.New(text))
		}
	}
	r.send(errors.Join(errs...))
}
