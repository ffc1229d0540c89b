// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// supervisor keeps one proxy serving: it starts the proxy, finds that of an earlier run, and lets another version take
// over. One goroutine calls all of its methods.
//
// The order of a take-over makes it safe to be killed between any two steps. A new process is recorded in the list of
// processes before it gets its first table, and accepts connections from then on. A process that is not recorded gets
// no table, accepts nothing and ends by itself. The old one gets the order to drain once the new one has replied. A run
// that finds several processes without that order uses the newest that replies, and orders the others to drain when
// that one has its table.
type supervisor struct {
	dir, program    string
	listenAddresses []netip.Addr
	log             func(message string, args ...any)
	groups          groups
	limits          table.Limits // of processes that are started
	ungrouped       bool         // it was logged that there is no control group
	http3           bool         // HTTP/3 is to be served
	withoutQUIC     bool         // HTTP/3 is not served, since its sockets could not be opened
	processes       processList
	sockets         *sockets
	// siteSockets are the wanted sockets of Gateways' ports. failedSites are those that cannot be opened. pendingChange
	// is what the process has not received yet.
	siteSockets   map[string]int
	failedSites   map[string]error
	pendingChange socketChange
	current       *process          // nil while there is none
	onStep        func(name string) // for tests; it is called between the steps
}

func newSupervisor(o Options, g groups) (*supervisor, error) {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the proxy's folder: %w", err)
	}
	return &supervisor{
		dir: o.Dir, program: o.Program, listenAddresses: o.NodeIPs, log: o.Logger.Info, groups: g, onStep: func(string) {},
		limits: table.Limits{Memory: g.goLimit(), Connections: cmp.Or(o.MaxConnections, defaultConnections)},
	}, nil
}

// startProxy finds the proxy that an earlier run has started, or starts one.
func (k *supervisor) startProxy() error {
	patient, err := k.find()
	if err != nil || k.current != nil {
		return err
	}
	return k.start(patient)
}

// find finds the proxy that an earlier run has started. patient is for start, where there is none.
func (k *supervisor) find() (patient bool, err error) {
	if k.processes, err = readProcesses(k.dir); err != nil {
		k.log("ingress: the record of the proxy cannot be used; the proxy is found by its socket", "error", err)
		k.processes = processList{}
	}
	if len(k.processes.Processes) == 0 {
		k.processes = recoverProcesses(k.dir)
	}
	for i := range k.processes.Processes {
		e := &k.processes.Processes[i]
		if e.Draining || !e.alive() {
			continue
		}
		p, s, err := adopt(k.dir, *e)
		if err != nil { // it drains already, or could not receive changes
			k.log("ingress: a proxy of the previous run takes no commands; it drains", "pid", e.PID, "error", err)
			if err := e.handedOver(); err != nil {
				return false, err
			}
			patient = true
			continue
		}
		k.current, k.sockets = p, s
		k.log("ingress: the proxy of the previous run keeps running", "pid", p.PID, "handsSockets", s != nil)
		break
	}
	if err := k.processes.write(k.dir); err != nil {
		return false, err
	}
	k.removeSockets()
	k.groups.sweep()
	return patient, nil
}

// removeSockets removes control sockets that no process of the list uses.
func (k *supervisor) removeSockets() {
	for _, name := range controlSockets(k.dir) {
		if !slices.ContainsFunc(k.processes.Processes, func(e entry) bool { return e.Socket == name }) {
			_ = os.Remove(filepath.Join(k.dir, name))
		}
	}
}

// start starts a proxy where there is none, with the held sockets or with new ones.
func (k *supervisor) start(patient bool) error {
	if !k.serves(k.sockets) {
		k.sockets.close()
		s, err := listenAll(k.listenAddresses, patient)
		if err != nil {
			return err
		}
		k.addQUIC(s, nil)
		k.sockets = s
	}
	k.failedSites = k.sockets.adjust(k.listenAddresses, k.siteSockets, patient, &k.pendingChange)
	p, err := k.launch(k.sockets)
	if err != nil {
		return err
	}
	k.current, k.pendingChange = p, socketChange{} // it was started with all of them
	k.log("ingress: the proxy was started", "pid", p.PID, "ports", k.sockets.ports())
	return nil
}

// listen opens and closes sockets of Gateways' ports. The proxy gets them with the next put. Without held sockets the
// proxy gets none of them until another one takes over.
func (k *supervisor) listen(sites map[string]int) {
	k.siteSockets = sites
	if k.sockets.serve(k.listenAddresses) { // otherwise another process takes over first, at other addresses
		k.failedSites = k.sockets.adjust(k.listenAddresses, sites, false, &k.pendingChange)
	}
}

// guarded returns the ports that the kernel has to guard: those of the sockets, and those that the proxy has not closed
// yet.
func (k *supervisor) guarded() []int {
	out := slices.Collect(maps.Values(k.pendingChange.closed))
	for kind, port := range k.sockets.ports() {
		if kind != table.QUIC {
			out = append(out, port)
		}
	}
	return out
}

// sendTable sends a table to the proxy. Then it orders other processes to drain that have no such order yet.
func (k *supervisor) sendTable(ctx context.Context, t table.Sections) (map[string]string, error) {
	problems, err := k.current.sendTable(ctx, t, k.sockets, k.pendingChange)
	if err != nil {
		return nil, err
	}
	k.pendingChange = socketChange{}
	return problems, k.retire()
}

// retire orders all processes to drain, except the serving one.
func (k *supervisor) retire() error {
	changed := false
	for i := range k.processes.Processes {
		e := &k.processes.Processes[i]
		if e.PID == k.current.PID || e.Draining {
			continue
		}
		k.onStep("retire")
		if err := e.handedOver(); err != nil {
			return err
		}
		k.log("ingress: another proxy has taken over; this one drains", "pid", e.PID, "by", k.current.PID)
		changed = true
	}
	if !changed {
		return nil
	}
	k.onStep("record drain")
	return k.processes.write(k.dir)
}

// outdated reports whether the proxy is of another version than the program, or has other addresses or limits than the
// node's.
func (k *supervisor) outdated() bool {
	if k.current == nil {
		return false
	}
	program, err := filepath.EvalSymlinks(k.program)
	return err == nil && program != k.current.Program || k.sockets != nil && (!k.serves(k.sockets) || k.current.limits != k.limits)
}

// takeOver starts a new process with the serving one's sockets. If that fails, the old one keeps serving.
func (k *supervisor) takeOver(ctx context.Context, t table.Sections) (map[string]string, error) {
	if k.sockets == nil { // the process is stuck
		return k.replace(ctx, t)
	}
	s, err := k.sockets.movedTo(k.listenAddresses)
	if err != nil {
		k.log("ingress: the ports are not free on the node's new addresses; listening on other addresses", "error", err)
		s, err = listenAll(k.listenAddresses, false)
	}
	if err != nil {
		return nil, err
	}
	k.addQUIC(s, k.sockets)
	k.onStep("launch")
	p, err := k.launch(s)
	if err == nil {
		k.onStep("table")
		_, err = p.sendTable(ctx, t, s, socketChange{}) // it was started with all sockets
		switch {
		case err != nil && ctx.Err() != nil: // the next run uses it, unless it has no table
			p.close()
		case err != nil:
			err = errors.Join(err, k.kill(p))
		}
	}
	if err != nil {
		s.close()
		return nil, fmt.Errorf("the new proxy: %w", err)
	}
	k.onStep("answer")
	k.current.close()
	k.sockets.close()
	k.current, k.sockets, k.pendingChange = p, s, socketChange{}
	return p.problems, k.retire()
}

// replace ends a proxy that does not hand over its sockets and starts another one.
func (k *supervisor) replace(ctx context.Context, t table.Sections) (map[string]string, error) {
	program, err := filepath.EvalSymlinks(k.program)
	if err != nil {
		return nil, fmt.Errorf("the ingress proxy is missing: %w", err)
	}
	k.log("ingress: the proxy does not hand over its sockets; it is ended, and another one started", "pid", k.current.PID, "program", program)
	for i := range k.processes.Processes {
		if e := &k.processes.Processes[i]; e.PID == k.current.PID {
			if err := e.signal(syscall.SIGTERM); err != nil {
				return nil, err
			}
			e.Draining = true
		}
	}
	k.current.close()
	k.current = nil
	k.onStep("ended")
	if err := k.start(true); err != nil {
		return nil, err
	}
	return k.sendTable(ctx, t)
}

// giveUp gives up a proxy that has ended, or does not respond, and returns the cause. A proxy that runs and has closed
// its connection drains.
func (k *supervisor) giveUp(cause error) error {
	p := k.current
	k.current = nil
	if k.groups.wasKilled(strconv.Itoa(p.PID)) {
		cause = fmt.Errorf("it reached its memory limit of %d MiB: %w", k.groups.memory>>20, cause)
	}
	if errors.Is(cause, os.ErrDeadlineExceeded) {
		cause = errors.Join(cause, k.kill(p))
	} else {
		p.close()
		for i := range k.processes.Processes {
			if e := &k.processes.Processes[i]; e.PID == p.PID {
				cause = errors.Join(cause, e.handedOver())
			}
		}
		cause = errors.Join(cause, k.processes.write(k.dir))
	}
	k.groups.sweep()
	return cause
}

// kill kills a process that cannot be used, and removes it from the list of processes.
func (k *supervisor) kill(p *process) error {
	err := p.signal(syscall.SIGKILL)
	p.close()
	_ = os.Remove(filepath.Join(k.dir, p.Socket)) // on failure the next start removes it
	k.processes.Processes = slices.DeleteFunc(k.processes.Processes, func(e entry) bool { return e.PID == p.PID })
	return errors.Join(err, k.processes.write(k.dir))
}

// release closes this run's connection and sockets. The proxies keep running.
func (k *supervisor) release() {
	if k.current != nil {
		k.current.close()
		k.current = nil
	}
	k.sockets.close()
	k.sockets = nil
}
