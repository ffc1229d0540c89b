// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// reportUnderlay reports when the interface to other nodes is lost, and when it is found again.
func (s *Server) reportUnderlay(err error) {
	now := ""
	if err != nil {
		now = err.Error()
	}
	if now == s.underlayTrouble {
		return
	}
	s.underlayTrouble = now
	if err != nil {
		s.log.Error(err, "Pods of other nodes may not be reached; those of this node reach one another")
	} else {
		s.log.Info("The interface to other nodes is there again")
	}
	s.report()
}

// reportPeers reports which nodes' pods cannot be reached for a reason that waiting does not remove, when that has
// changed.
func (s *Server) reportPeers(trouble []unreachablePeer) {
	var texts []string
	for _, t := range trouble {
		texts = append(texts, fmt.Sprintf("node %s: %s", t.peer, t.why))
	}
	s.reportTrouble(&s.peersTrouble, strings.Join(texts, "; "), "Pods of some nodes cannot be reached from this one",
		"Nothing keeps this node from reaching the pods of all others any more")
}

// reportWays reports for which nodes the kernel rejects routes and entries, when that has changed.
func (s *Server) reportWays(trouble map[string]error) {
	var texts []string
	for _, peer := range slices.Sorted(maps.Keys(trouble)) {
		texts = append(texts, fmt.Sprintf("node %s: the kernel takes no way to it: %v", peer, trouble[peer]))
	}
	s.reportTrouble(&s.waysTrouble, strings.Join(texts, "; "), "Pods of some nodes cannot be reached from this one; it is tried again",
		"The kernel takes the ways to all nodes again")
}

// reportBackend reports that the cluster requests a back end that cannot be used, when that has changed.
func (s *Server) reportBackend(trouble string) {
	s.reportTrouble(&s.backendTrouble, trouble, "The network back end is not changed", "")
}

// reportSetup reports that the pod network could not be set up, when that has changed. The caller logs the error.
func (s *Server) reportSetup(err error) {
	now := ""
	if err != nil {
		now = "the pod network could not be set up, and it is tried again: " + err.Error()
	}
	s.reportTrouble(&s.setupTrouble, now, "", "")
}

// reportTrouble stores a problem, or "" if there is none. When it has changed it logs one of two messages, unless that
// is empty.
func (s *Server) reportTrouble(last *string, now, wrong, over string) {
	if now == *last {
		return
	}
	*last = now
	switch {
	case now != "" && wrong != "":
		s.log.Info(wrong, "why", now)
	case now == "" && over != "":
		s.log.Info(over)
	}
	s.report()
}

func (s *Server) report() {
	if s.o.Report == nil {
		return
	}
	var errs []error
	for _, text := range []string{s.underlayTrouble, s.peersTrouble, s.waysTrouble, s.backendTrouble, s.setupTrouble} {
		if text != "" {
			errs = append(errs, errors.New(text))
		}
	}
	s.o.Report(errors.Join(errs...))
}
