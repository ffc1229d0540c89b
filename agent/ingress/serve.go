// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/internal/preflight"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// probeEvery is how often a proxy without other requests is probed.
	probeEvery = 30 * time.Second
	// gatherTime is how long to wait for more changes after an object has changed.
	gatherTime = 10 * time.Millisecond
	// drainTime is how long a stopped proxy may drain, plus a second.
	drainTime = 31 * time.Second
	// steadyAfter is how long a proxy must have served for the next to be started at once. longestBackoff limits the
	// wait otherwise.
	steadyAfter, longestBackoff = time.Minute, time.Minute
)

// backoff is the wait before another attempt: none at first, then a second, doubled each time.
type backoff struct{ wait time.Duration }

// nextWait returns the wait after a failure. lived is how long the failed thing had worked.
func (b *backoff) nextWait(lived time.Duration) time.Duration {
	if lived >= steadyAfter {
		b.wait = 0
	}
	now := b.wait
	b.wait = min(max(time.Second, 2*b.wait), longestBackoff)
	return now
}

// serving is the state while the cluster has an ingress.
type serving struct {
	*Node
	supervisor *supervisor
	// restarts is the wait after a proxy has ended. takeOvers is the wait after a proxy of another version failed to
	// take over.
	restarts, takeOvers backoff
	// retry receives when the next attempt may begin. It is nil while nothing has failed.
	retry <-chan time.Time
	// takeOverErr is the error of the last failed take-over.
	takeOverErr error
	// hasProxy means that there is a proxy, or would be if it could be started. neededNone means that none was needed.
	hasProxy, neededNone bool
	portOwners           portOwners
	// checkPorts means that it is time to check for other programs on the Service's ports.
	checkPorts bool
	// saveDue receives when the last table is due to be written to its file.
	saveDue <-chan time.Time
	// credentialsRefused means that a server has refused this node's credentials since the last table.
	credentialsRefused bool
}

// serve runs until the cluster has no ingress any more, or ctx is done.
func (n *Node) serve(ctx context.Context) error {
	k, err := newSupervisor(n.o, n.groups())
	if err != nil {
		return fmt.Errorf("ingress: %w", err)
	}
	defer k.release()
	following, cancel := context.WithCancel(ctx)
	tables := make(chan table.Sections) // unbuffered: only the last received table counts
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { follow(following, n.stream, tables, n.o.Logger) })
	defer n.savedTable.flush()
	nft.FollowDeletions(following, &wg, n.tableEvents, func(err error) {
		n.o.Logger.Info("ingress: a deletion of the proxy's nftables table by another program cannot be detected; the table is restored at "+
			"the next change of a Node", "error", err)
	}, NFTable())
	n.o.Part.Set(status.Starting, "waiting for the routing table from a server")
	probe := time.NewTicker(probeEvery)
	defer probe.Stop()
	s := &serving{Node: n, supervisor: k, checkPorts: true}
	for {
		var reached <-chan struct{} // closed when the set of reachable nodes changes
		if n.o.Unreachable != nil {
			reached = n.o.Unreachable.Changed()
		}
		if err := s.startWhenNeeded(ctx); err != nil {
			return err
		}
		if err := s.sync(ctx); err != nil || ctx.Err() != nil {
			return err
		}
		var ended <-chan error
		if k.current != nil {
			ended = k.current.connEnded
		}
		select {
		case <-ctx.Done():
			return nil
		case received := <-tables:
			n.useTable(ctx, received)
			s.credentialsRefused = false
		case <-n.credentialsRefused:
			s.credentialsRefused = true
			n.savedTable.forget()
		case <-s.saveDue:
		case err := <-ended:
			s.giveUp(err)
		case <-s.retry:
			s.retry = nil
		case <-reached:
		case <-probe.C:
			s.checkPorts = true
			if k.current != nil {
				if _, err := s.stats(ctx); err != nil && ctx.Err() == nil {
					s.giveUp(err)
				}
			}
		case q := <-n.questions:
			s.report(ctx, q)
		case <-n.tableEvents:
			n.tableDeleted()
		case <-n.wake:
			if !timers.Sleep(ctx, gatherTime) {
				return nil
			}
			if !n.isWanted() {
				k.release()
				return n.stopProxy(ctx)
			}
		}
	}
}

// isNeeded reports whether a proxy has something to serve. Services do not decide that for a Gateway's site: only the
// table does.
func (s *serving) isNeeded() bool { return s.hasService() || len(siteSockets(s.table)) > 0 }

// startWhenNeeded finds the proxy of an earlier run, or starts one, as soon as one is needed. It stops the proxy when
// none is needed any more.
func (s *serving) startWhenNeeded(ctx context.Context) error {
	needed := s.isNeeded()
	switch {
	case needed && !s.hasProxy:
		s.supervisor.siteSockets = siteSockets(s.table)
		s.supervisor.setHTTP3(s.http3Port() > 0)
		if err := s.supervisor.startProxy(); err != nil {
			return fmt.Errorf("ingress: %w", err)
		}
		s.hasProxy, s.neededNone = true, false
	case !needed && s.table != nil && !s.neededNone:
		s.supervisor.release()
		if err := s.stop(ctx); err != nil || ctx.Err() != nil {
			return err
		}
		*s = serving{Node: s.Node, supervisor: s.supervisor, neededNone: true}
		s.supervisor.processes = processList{}
		s.o.Part.Set(status.Running, "at rest: no Gateway has a listener to serve")
	}
	return nil
}

// sync makes sure that a proxy runs, that the kernel guards its ports, and that it serves the last table. It returns an
// error only where serve has to begin again.
func (s *serving) sync(ctx context.Context) error {
	k := s.supervisor
	for s.hasProxy && ctx.Err() == nil {
		k.setHTTP3(s.http3Port() > 0)
		if s.table != nil { // before the first table, the sockets of the run before stay open
			k.listen(siteSockets(s.table))
		}
		if k.current == nil {
			if s.retry != nil {
				return nil
			}
			if err := k.start(false); err != nil {
				s.reportFailure(fmt.Errorf("the proxy cannot be started: %w", err), s.restarts.nextWait(0))
				continue
			}
		}
		if err := s.guard(ctx); err != nil {
			return err
		}
		if s.table == nil {
			if s.sendSavedTable(ctx) {
				return nil
			}
			continue
		}
		problems, err := s.sendTable(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			if k.current != nil {
				s.giveUp(err)
			} else {
				s.reportFailure(err, s.restarts.nextWait(0))
			}
			continue
		}
		if err := s.guard(ctx); err != nil { // after a take-over the ports may differ
			return err
		}
		if err := s.writePorts(ctx); err != nil {
			return err
		}
		s.showProblems(problems)
		s.keepLast()
		return nil
	}
	return nil
}

// guard makes the kernel guard the proxy's ports. The ports of a proxy that does not hand over its sockets are unknown,
// and guarded since the run before.
func (s *serving) guard(ctx context.Context) error {
	if s.supervisor.sockets == nil {
		return nil
	}
	if err := s.protect(ctx, s.supervisor.guarded(), s.supervisor.guardedUDP()); err != nil && ctx.Err() == nil {
		return fmt.Errorf("ingress: %w", err) // the proxy must not serve unguarded
	}
	return nil
}

// sendTable sends the table to the proxy. If the proxy is outdated, another one takes over.
func (s *serving) sendTable(ctx context.Context) (map[string]string, error) {
	k, now := s.supervisor, s.complete(s.table)
	problems, err := k.sendTable(ctx, now)
	if err != nil || !k.outdated() || s.retry != nil {
		return problems, err
	}
	began := time.Now()
	taken, err := k.takeOver(ctx, now)
	if err == nil {
		s.takeOverErr, s.takeOvers = nil, backoff{}
		s.wake.Send() // for sockets of Gateways that could not be opened before
		s.o.Logger.Info("ingress: another proxy has taken over", "pid", k.current.PID, "after", time.Since(began))
		return taken, nil
	}
	if k.current == nil {
		return nil, err
	}
	if ctx.Err() == nil {
		s.takeOverErr = err
		wait := max(time.Second, s.takeOvers.nextWait(0))
		s.retry = time.After(wait)
		s.o.Logger.Warn("ingress: the new version of the proxy could not take over, so the old one keeps running; retrying", "after", wait,
			"error", err)
	}
	return problems, nil
}

// giveUp gives up a proxy that has ended, or does not respond.
func (s *serving) giveUp(cause error) {
	lived := time.Since(s.supervisor.current.beganAt)
	cause = s.supervisor.giveUp(cause)
	s.failures.addExit(cause, time.Now())
	s.reportFailure(fmt.Errorf("the proxy has ended: %w", cause), s.restarts.nextWait(lived))
}

// stats asks the proxy for its counters, and notes which limits its clients have met since the last time.
func (s *serving) stats(ctx context.Context) (*table.Stats, error) {
	p := s.supervisor.current
	stats, err := p.stats(ctx)
	if stats == nil || err != nil {
		return nil, err
	}
	if p.limitCounts != nil {
		s.failures.addCounts(*p.limitCounts, stats.Limited, time.Now())
	}
	p.limitCounts = &stats.Limited
	return stats, nil
}

// reportFailure reports that there is no proxy, and sets when the next attempt begins.
func (s *serving) reportFailure(err error, wait time.Duration) {
	s.o.Logger.Error("ingress: the proxy is started again; until then connections wait", "after", wait, "error", err)
	s.o.Part.Set(status.Failed, fmt.Sprintf("the proxy is started again after %s: %v", wait, err))
	s.retry = nil
	if wait > 0 {
		s.retry = time.After(wait)
	}
}

// writePorts writes to the Node on which ports it serves.
func (s *serving) writePorts(ctx context.Context) error {
	word := portsAnnotation(s.supervisor.sockets.ports())
	if word == "" {
		return nil
	}
	if err := s.findPortOwners(ctx); err != nil {
		return err
	}
	word += s.portOwners.annotation()
	if word == s.annotation {
		return nil
	}
	if err := s.o.Annotate(ctx, word); err != nil && ctx.Err() == nil {
		return fmt.Errorf("ingress: %w", err)
	}
	s.annotation = word
	return nil
}

// findPortOwners finds out which of the Service's ports other programs of the machine use. It does so when checkPorts
// is set or the ports have changed.
func (s *serving) findPortOwners(ctx context.Context) error {
	ports := s.servicePorts()
	known := func(port int) bool { _, ok := s.portOwners.ownProcesses[port]; return ok }
	if !s.checkPorts && len(ports) == len(s.portOwners.ownProcesses) &&
		!slices.ContainsFunc(ports, func(port int) bool { return !known(port) }) {
		return nil
	}
	said := ""
	if s.portOwners.ownProcesses == nil {
		var err error
		if said, err = s.o.Annotation(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("ingress: %w", err)
		}
	}
	programs, err := preflight.Listeners(ports, s.o.NodeIPs)
	if err != nil {
		s.o.Logger.Warn("ingress: other programs at its ports could not be listed; they may not receive connections from other machines", "error", err)
	}
	before := s.portOwners.problem()
	s.portOwners.update(ports, programs, said)
	s.checkPorts = false
	if now := s.portOwners.problem(); now != before && now != "" {
		s.o.Logger.Warn("ingress: " + now)
	}
	return nil
}

// portsAnnotation returns the entries of ports for the Node's annotation.
func portsAnnotation(ports map[string]int) string {
	var out, gateways []string
	for _, name := range slices.Sorted(maps.Keys(ports)) {
		if site, _, ok := strings.Cut(name, "/"); ok {
			gateways = append(gateways, strconv.Itoa(ports[name])+"="+table.SiteMark(site))
		} else {
			out = append(out, name+"="+strconv.Itoa(ports[name]))
		}
	}
	return strings.Join(append(out, slices.Sorted(slices.Values(gateways))...), ",")
}

func (s *serving) showProblems(problems map[string]string) {
	problems = maps.Clone(problems)
	for key, text := range failedSites(s.supervisor.failedSites) {
		if problems == nil {
			problems = map[string]string{}
		}
		problems[key] = text
	}
	hosts := 0
	for key := range s.table {
		if table.Kind(key) == table.KindHost {
			hosts++
		}
	}
	text := fmt.Sprintf("%d hosts, process %d", hosts, s.supervisor.current.PID)
	wrong := s.failures.texts(s.supervisor.groups.memory, s.supervisor.limits.Connections, time.Now())
	if s.takeOverErr != nil {
		wrong = append(wrong, fmt.Sprintf("it keeps running, since the new version could not take over: %v", s.takeOverErr))
	}
	for _, problem := range []string{s.portOwners.problem(), s.leftOutText()} {
		if problem != "" {
			wrong = append(wrong, problem)
		}
	}
	if len(problems) > 0 {
		first := slices.Sorted(maps.Keys(problems))[0]
		wrong = append(wrong, fmt.Sprintf("%d sections of the routing table are incomplete, such as %s: %s", len(problems), first, problems[first]))
	}
	if len(wrong) > 0 {
		s.o.Part.Set(status.Degraded, text+"; "+strings.Join(wrong, "; "))
		return
	}
	s.o.Part.Set(status.Running, text)
}
