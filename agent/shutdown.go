// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/coracle-k8s/coracle/agent/containerd"
	"github.com/coracle-k8s/coracle/agent/kubelet"
	"github.com/coracle-k8s/coracle/agent/podstop"
	"github.com/coracle-k8s/coracle/internal/podkill"
)

const (
	// attachTimeout is how long a stop waits for a runtime that is starting.
	attachTimeout = 10 * time.Second
	// startTimeout is how long starts that are under way may take.
	startTimeout = 10 * time.Second
	// lostTimeout is how long processes of pods may take to exit after their containers have ended.
	lostTimeout = 2 * time.Second
)

// StopRest is how much longer than the pods' time a stop and the end of the process may take.
const StopRest = 45 * time.Second

// Shutdown stops the pods of a node when its machine goes down. It outlives the node: if the node has not started, or
// has ended, it says why it cannot stop pods.
type Shutdown struct {
	running   chan struct{} // closed when the runtime runs
	nodeEnded chan struct{} // closed when the node has ended

	// set before running is closed
	options Options
	runtime *containerd.Server

	starts     kubelet.Starts  // of sandboxes and containers
	mounts     kubelet.Starts  // and of mounts
	stopping   context.Context // done when the kubelet has to end
	endKubelet context.CancelFunc

	mu      sync.Mutex
	pods    func() []*corev1.Pod // those that the kubelet knows; nil before there is one
	runOnce func() (string, error)
}

// NewShutdown returns a Shutdown that has no node yet.
func NewShutdown() *Shutdown {
	s := &Shutdown{running: make(chan struct{}), nodeEnded: make(chan struct{})}
	s.stopping, s.endKubelet = context.WithCancel(context.Background())
	return s
}

// attach sets the node to stop, once the runtime of the node runs.
func (s *Shutdown) attach(o Options, runtime *containerd.Server) {
	s.options, s.runtime = o, runtime
	close(s.running)
}

// untilStop returns a context that also ends when pods are stopped.
func (s *Shutdown) untilStop(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	if s.stopping.Err() != nil {
		cancel()
	}
	release := context.AfterFunc(s.stopping, cancel)
	return ctx, func() {
		release()
		cancel()
	}
}

// setPods receives the kubelet's list of pods.
func (s *Shutdown) setPods(pods func() []*corev1.Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pods = pods
}

// knownPods returns the pods that the kubelet knows, by their UIDs.
func (s *Shutdown) knownPods() map[string]*corev1.Pod {
	s.mu.Lock()
	pods := s.pods
	s.mu.Unlock()
	known := map[string]*corev1.Pod{}
	if pods != nil {
		for _, p := range pods() {
			known[string(p.UID)] = p
		}
	}
	return known
}

// Stopping says whether pods are being stopped, or were.
func (s *Shutdown) Stopping() bool { return s.stopping.Err() != nil }

// StopPods stops all pods, unmounts their volumes, and returns what it did. Containers have the given time; the rest
// takes at most half a minute more. It does all of this once: later calls return the result of the first. The node
// starts no pods any more, so the process has to end afterwards.
func (s *Shutdown) StopPods(ctx context.Context, within time.Duration) (done string, err error) {
	timer := time.NewTimer(attachTimeout)
	defer timer.Stop()
	select {
	case <-s.running:
	case <-s.nodeEnded:
	case <-timer.C:
	case <-ctx.Done():
	}
	if err := s.stoppable(); err != nil {
		return "", err
	}
	s.mu.Lock()
	if s.runOnce == nil {
		s.runOnce = sync.OnceValues(func() (string, error) { return s.stopPods(context.WithoutCancel(ctx), within) })
	}
	once := s.runOnce
	s.mu.Unlock()
	return once()
}

// stoppable returns why the pods cannot be stopped, or nil.
func (s *Shutdown) stoppable() error {
	select {
	case <-s.nodeEnded: // before the rest: a node that has ended had a runtime
		return errors.New("the node does not run on this machine, so its pods cannot be stopped in order")
	default:
	}
	select {
	case <-s.running:
	default:
		return errors.New("the container runtime has not started, so pods cannot be stopped in order")
	}
	own, err := kubelet.UsesRuntime(s.options.kubelet(s.runtime, nil))
	if err == nil && !own {
		err = errors.New("the kubelet has another runtime than coracle's (--kubelet-arg container-runtime-endpoint), " +
			"whose pods coracle does not stop. They run on")
	}
	return err
}

func (s *Shutdown) stopPods(ctx context.Context, within time.Duration) (done string, err error) {
	log, began := s.options.Logger, time.Now()
	log.Info("agent: stopping all pods, since the machine goes down", "within", within)
	known := s.knownPods()
	s.endKubelet()
	closing, cancel := context.WithTimeout(ctx, startTimeout)
	var preparing sync.WaitGroup
	left := 0
	preparing.Go(func() { left = s.starts.Close(closing) })
	preparing.Go(func() { s.unready(ctx, known) })
	mounting := make(chan int, 1) // one: nothing receives it after a panic
	go func() { mounting <- s.mounts.Close(closing) }()
	preparing.Wait()
	n, err := podstop.Stop(ctx, podstop.Options{
		Runtime: s.runtime.Calls(), Within: within - time.Since(began), Logger: log,
		Pod: func(uid string) *corev1.Pod { return known[uid] },
	})
	if left > 0 {
		err = errors.Join(err, fmt.Errorf("%d starts of sandboxes or containers are still under way", left))
	}
	if left := <-mounting; left > 0 {
		err = errors.Join(err, fmt.Errorf("%d mounts of volumes are still under way", left))
	}
	cancel()
	p := s.options.paths()
	err = errors.Join(err, podstop.Volumes{Root: p.KubeletRoot, Disks: []string{p.DataDir, p.KubeletRoot}}.Unmount(ctx))
	if err == nil {
		// What the runtime does not list may run all the same: it has lost a container, or a shim goes on with a start.
		err = podkill.AwaitNone(ctx, podkill.Node{Root: p.ContainerdRoot, State: p.ContainerdState, BinDir: s.options.BinDir}, lostTimeout)
	}
	if err == nil {
		if err := s.markStopped(ctx, known); err != nil {
			log.Info("agent: the cluster does not know that the pods were stopped, so others take their place later", "error", err)
		}
	}
	took := time.Since(began).Round(100 * time.Millisecond)
	if err != nil {
		log.Warn("agent: not all pods were stopped in order", "containers", n, "after", took, "error", err)
		return "", fmt.Errorf("not all pods were stopped in order; what still runs is killed when the machine goes down: %w", err)
	}
	log.Info("agent: all pods were stopped", "containers", n, "after", took)
	return "stopped " + strconv.Itoa(n) + " containers in " + took.String(), nil
}
