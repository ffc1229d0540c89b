// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coracle-k8s/coracle/cmd/coracle/cli/logging"
	"github.com/coracle-k8s/coracle/cmd/coracle/cli/profiling"
	"github.com/coracle-k8s/coracle/cmd/coracle/cli/wallclock"
	"github.com/coracle-k8s/coracle/cmd/coracle/trial"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/imports"
	"github.com/coracle-k8s/coracle/internal/slots"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/version"
)

// ErrRestart is the error with which a server or an agent ends that has to start again in the same process. App.Restart
// does the restart.
var ErrRestart = errors.New("coracle has to restart")

// sameSignal is the interval within which two signals count as one: timeout(1) and some shells signal a process and
// then its group.
const sameSignal = 500 * time.Millisecond

// endWithin is how long a version that was refused may take to end.
const endWithin = 30 * time.Second

// Process is the running server or agent as its parts see it.
type Process struct {
	Paths config.Paths
	// Log is the process' log; call Log.RedirectKlog after starting a library that takes klog over.
	Log *logging.Log
	// Board is where parts report their state for coracle status.
	Board *status.Board
	// Admin serves the admin socket. Parts may add requests for root to it before Ready is called.
	Admin *status.Server

	role, node, api string
	unaccepted      []string // what is wrong with the settings of now, if it runs with those from before a trial
	app             *App
	notify          notifier
	readyOnce       sync.Once
	quiet           *quiet
	started         time.Time
	stopping        atomic.Bool // a stop was requested
	ending          chan struct{}
	endOnce         sync.Once
}

// End ends the process in order, as a first signal does. The next signal counts as the first one.
func (p *Process) End() { p.endOnce.Do(func() { close(p.ending) }) }

// EndWithin ends the process after this time at the latest, also while parts of it still run, unless the returned
// function was called before. It is for a machine that goes down: nothing may keep it.
func (p *Process) EndWithin(d time.Duration) (cancel func()) {
	timer := time.AfterFunc(d, func() {
		p.Log.Warn("some parts have not stopped in time; coracle exits without them, the store is safe")
		os.Exit(1)
	})
	return func() { timer.Stop() }
}

// Ready reports that the process serves: systemd then starts the units that wait for it, and coracle status shows since
// when it serves.
func (p *Process) Ready() {
	p.readyOnce.Do(func() {
		now := time.Now()
		p.quiet.setReady()
		p.Admin.SetReady(now)
		p.Log.Info("ready", "role", p.role, "node", p.node, "api", p.api, "after", now.Sub(p.started).Round(10*time.Millisecond))
		if err := p.notify.send("READY=1\nSTATUS=ready"); err != nil {
			p.Log.Warn("systemd could not be notified that coracle is ready", "error", err)
		}
	})
}

// run sets up the log, the pid file, the admin socket and the signals, and runs body.
func (p *Process) run(parent context.Context, logs config.Logging, warnings []string, body func(context.Context) error) (err error) {
	p.started = time.Now()
	p.ending = make(chan struct{})
	p.notify = takeNotifier()
	if err := writableDir(p.Paths.DataDir, "data directory", "--data-dir"); err != nil {
		return err
	}
	if err := writableDir(p.Paths.RunDir, "run directory", "--run-dir"); err != nil {
		return err
	}
	pidFile, err := lockPIDFile(p.Paths.PIDFile, p.role)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, pidFile.release()) }()
	if p.Log, err = logging.Setup(logs, p.app.Stderr); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Log.Close()) }()
	v := version.Get()
	defer p.maintainClock(v)()
	p.Log.Info("coracle starts", "role", p.role, "version", v.Coracle, "kubernetes", v.Kubernetes, "go", v.Go, "data", p.Paths.DataDir,
		"pid", os.Getpid())
	for _, w := range warnings {
		p.Log.Warn(w)
	}
	for _, w := range p.unaccepted {
		p.Log.Warn("this version does not accept the settings of now, and runs with those from before the trial", "problem", w)
	}
	p.quiet = startQuiet(p.Log)
	defer func() { p.quiet.finish(err == nil) }()
	p.Board = status.NewBoard(time.Now)
	p.Admin = status.NewServer(p.Paths.AdminSocket, status.Report{
		Role: p.role, Version: v.Coracle, Kubernetes: v.Kubernetes, Node: p.node, DataDir: p.Paths.DataDir, API: p.api, Started: p.started,
	}, p.Board)
	p.Admin.Handle("GET /v1/debug/", profiling.Handler())
	listener, err := p.Admin.Listen()
	if err != nil {
		return err
	}
	ctx, stop := p.untilSignal(parent)
	defer stop()
	adminCtx, stopAdmin := context.WithCancel(context.Background()) // the admin socket is served while the other parts stop
	adminDone := make(chan error, 1)                                // one: its goroutine never waits for a reader
	go func() { adminDone <- p.Admin.Serve(adminCtx, listener) }()

	endTrial := p.startTrial(ctx)
	bodyErr := body(ctx)
	endTrial()
	stopAdmin()
	adminErr := <-adminDone
	switch {
	case errors.Is(bodyErr, ErrRestart) && ctx.Err() == nil:
		p.Log.Info("coracle restarts; pods keep running", "after", time.Since(p.started).Round(time.Second))
		return errors.Join(ErrRestart, adminErr)
	case bodyErr != nil && !(ctx.Err() != nil && (errors.Is(bodyErr, context.Canceled) || errors.Is(bodyErr, ErrRestart))):
		p.Log.Error("coracle stops because of an error; pods keep running", "error", bodyErr)
		return errors.Join(bodyErr, adminErr)
	case ctx.Err() == nil:
		return errors.Join(errors.New("the "+p.role+" ended unexpectedly"), adminErr)
	}
	p.Log.Info("coracle has stopped; pods keep running", "after", time.Since(p.started).Round(time.Second))
	return adminErr
}

// startTrial begins what a version on trial does, or one that runs again after a trial, until the returned function is
// called. A program that lies in no slot does nothing.
func (p *Process) startTrial(ctx context.Context) (end func()) {
	folders := imports.Of(p.Paths, p.role == "agent")
	if err := folders.Finish(); err != nil {
		p.Log.Warn("the import of a bundle that was interrupted could not be finished; import the bundle again", "error", err)
	}
	v, digest, ok := slots.Own()
	if !ok {
		return func() {}
	}
	return trial.Process{
		Versions: v, Digest: digest, Version: version.Get().Coracle, Node: p.node, Observer: observer(p.Paths, p.role),
		Problems: p.unaccepted,
		Current: func() {
			if err := folders.ApplySlot(v); err != nil {
				p.Log.Warn("what the bundle of this version brings could not be put into its places; the next start tries again", "error", err)
			}
		},
		End: func() {
			p.EndWithin(endWithin)
			p.End()
		},
		Logger: p.Log.With("part", "trial"),
	}.Start(ctx)
}

// Restart restarts the program even while parts of it still run; see App.Restart. When a stop was requested meanwhile,
// it ends the process.
func (p *Process) Restart() {
	if p.stopping.Load() {
		p.Log.Info("some parts have not stopped in time; coracle exits without them, pods keep running and the store is safe")
		os.Exit(0)
	}
	p.Log.Info("some parts have not stopped in time; coracle restarts without waiting for them, pods keep running")
	p.Log.Error("coracle could not restart; the service manager starts it again", "error", p.app.Restart())
	os.Exit(1)
}

// maintainClock sets a clock that is behind forward, before any certificate is checked. It records the time for the
// next start until the function that it returns is called.
func (p *Process) maintainClock(v version.Info) (stop func()) {
	clock := wallclock.Clock{
		File: filepath.Join(p.Paths.DataDir, "clock"), Logger: p.Log.Logger,
		Patterns: []string{
			filepath.Join(p.Paths.StoreDir, "*"), filepath.Join(p.Paths.StoreDir, "*", "*"), filepath.Join(p.Paths.TLSDir, "*.pem"),
			filepath.Join(p.Paths.AgentDir, "*.json"), filepath.Join(p.Paths.AgentDir, "cred", "*.pem"),
		},
	}
	if built, err := time.Parse(time.RFC3339, v.Date); err == nil {
		clock.Built = built
	}
	clock.Forward()
	p.started = time.Now()
	ctx, cancel := context.WithCancel(context.Background())
	var keeping sync.WaitGroup
	keeping.Go(func() { clock.Run(ctx) })
	return func() {
		cancel()
		keeping.Wait()
	}
}

// untilSignal returns a context that ends at the first SIGTERM or SIGINT, or when End is called. The second signal ends
// the process. SIGHUP, which a closing terminal sends, is ignored: everything that can be reloaded is reloaded without
// it.
func (p *Process) untilSignal(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(parent)
	signals := make(chan os.Signal, 2) // two: the first signal and an impatient second one are never lost
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	signal.Ignore(syscall.SIGHUP)
	done := make(chan struct{})
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		var first time.Time
		end := p.ending
		for {
			select {
			case s := <-signals:
				switch {
				case first.IsZero():
					p.Log.Info("stopping; press Ctrl-C or send the signal again to stop at once", "signal", s)
					first = time.Now() // before the status shows it: a caller who then waits sameSignal can end the process
					p.beginStop()
					cancel()
				case time.Since(first) >= sameSignal:
					p.Log.Warn("second signal, leaving at once; pods keep running and the store is safe", "signal", s)
					os.Exit(1)
				}
			case <-end:
				end = nil
				p.beginStop()
				cancel()
			case <-done:
				return
			}
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(done)
		<-finished
		cancel()
	}
}

// beginStop reports that the process stops.
func (p *Process) beginStop() {
	p.stopping.Store(true)
	if err := p.notify.send("STOPPING=1\nSTATUS=stopping"); err != nil {
		p.Log.Warn("systemd could not be notified that coracle stops", "error", err)
	}
	p.Admin.SetStopping()
	p.quiet.setStopping()
}

// notifier speaks systemd's sd_notify protocol (sd_notify(3)).
type notifier struct{ socket string }

// takeNotifier removes the socket's name from the environment, so that no child process notifies systemd: runc would.
func takeNotifier() notifier {
	n := notifier{os.Getenv("NOTIFY_SOCKET")}
	_ = os.Unsetenv("NOTIFY_SOCKET") // fails only for a malformed name
	return n
}

func (n notifier) send(state string) error {
	if n.socket == "" {
		return nil
	}
	name := n.socket
	if name[0] == '@' {
		name = "\x00" + name[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("reaching systemd: %w", err)
	}
	_, err = c.Write([]byte(state))
	return errors.Join(err, c.Close())
}

func hostPort(ip netip.Addr, port int) string {
	return net.JoinHostPort(ip.String(), strconv.Itoa(port))
}
