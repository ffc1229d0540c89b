// SPDX-License-Identifier: Apache-2.0

package console

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// maxForwards limits the forwards of a console, including ended ones.
	maxForwards = 32
	// maxForwardConns limits the connections of one forward. Further ones wait.
	maxForwardConns = 64
	// forwardPoll is the interval of checks whether a forward's pod still exists, since no connection reports that by
	// itself.
	forwardPoll = 5 * time.Second
	// firstForwardPort and lastForwardPort are the range of the forwards' ports. A console has none of these unless
	// --port names one. A page of a pod may leave a service worker in the browser for its address, which answers each
	// later request to it. That address must not become a console's.
	firstForwardPort, lastForwardPort = 20000, 29999
	// forwardPortTries limits the attempts to find a free port.
	forwardPortTries = 100
)

// noForwards is the error of a server's console: a browser on another machine cannot use a port of the server's
// 127.0.0.1.
const noForwards = "the console of a server opens no ports: use kubectl port-forward"

func isForwardPort(port int) bool { return port >= firstForwardPort && port <= lastForwardPort }

// forwards are the ports of 127.0.0.1 that are forwarded to pods. They end with the console.
type forwards struct {
	mu     sync.Mutex
	closed bool
	poll   time.Duration // forwardPoll, except in tests
	lastID int64
	list   []*forward
}

// forward is one port of 127.0.0.1 that is forwarded to a port of a pod.
type forward struct {
	h        *Handler // of its context: pages of others do not see it
	u        *user
	path     string // of the pod
	uid      types.UID
	listener net.Listener
	cancel   context.CancelFunc
	poll     time.Duration

	mu    sync.Mutex
	state forwardState
}

type forwardState struct {
	ID        int64  `json:"id"`
	Resource  string `json:"resource"` // pods or services: the kind that the user chose
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Pod       string `json:"pod"`
	Port      int    `json:"port"`  // of the pod
	Local     int    `json:"local"` // of 127.0.0.1
	Open      int    `json:"open"`  // current connections
	Opened    int64  `json:"opened"`
	Failed    int64  `json:"failed"`          // connections that ended with an error
	Error     string `json:"error,omitempty"` // the newest error
	Ended     string `json:"ended,omitempty"` // why it has ended; "" while it is open
}

// openForward opens a port that is forwarded to a pod, or to a pod of a Service.
func (h *Handler) openForward(r *http.Request, u *user) (any, error) {
	if h.o.ReadOnly {
		return nil, newRequestError(http.StatusForbidden, readOnly)
	}
	if h.o.Mode != ModeLoopback {
		return nil, newRequestError(http.StatusForbidden, noForwards)
	}
	var in struct {
		Path string `json:"path"` // of a pod or a Service
		Port string `json:"port"` // a number or a name
	}
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	target, err := u.forwardTarget(r.Context(), in.Path, in.Port)
	if err != nil {
		return nil, err
	}
	f := &forward{h: h, u: u, path: podPath(target.pod), uid: target.pod.UID, poll: cmp.Or(h.forwards.poll, forwardPoll)}
	f.state = forwardState{
		Resource: target.resource, Namespace: target.pod.Namespace, Name: target.name, Pod: target.pod.Name, Port: target.port,
	}
	// The first connection shows at once whether the user may connect.
	first, err := f.dial(r.Context())
	if err != nil {
		return nil, fmt.Errorf("connecting to the pod: %w", err)
	}
	_ = first.Close() // nothing was sent
	if f.listener, err = listenForward(r.Context()); err != nil {
		return nil, err
	}
	if err := h.start(f); err != nil {
		_ = f.listener.Close() // no client uses it yet
		return nil, newRequestError(http.StatusServiceUnavailable, "%s", err)
	}
	return f.currentState(), nil
}

// start serves a forward until it ends.
func (h *Handler) start(f *forward) error {
	h.forwards.mu.Lock()
	defer h.forwards.mu.Unlock()
	if h.forwards.closed {
		return errors.New("the console ends")
	}
	if len(h.forwards.list) >= maxForwards { // remove forwards that have ended
		h.forwards.list = slices.DeleteFunc(h.forwards.list, func(f *forward) bool { return f.currentState().Ended != "" })
	}
	if len(h.forwards.list) >= maxForwards {
		return fmt.Errorf("%d ports are open: stop some", maxForwards)
	}
	ctx, cancel := context.WithCancel(context.Background())
	address, _ := f.listener.Addr().(*net.TCPAddr)
	h.forwards.lastID++
	f.cancel, f.state.ID, f.state.Local = cancel, h.forwards.lastID, address.Port
	h.forwards.list = append(h.forwards.list, f)
	h.open.Go(func() { f.run(ctx) })
	return nil
}

// listForwards answers with all forwards of this context: the console has one user.
func (h *Handler) listForwards(_ *http.Request, _ *user) (any, error) {
	out := []forwardState{}
	h.forwards.mu.Lock()
	for _, f := range h.forwards.list {
		if f.h == h {
			out = append(out, f.currentState())
		}
	}
	h.forwards.mu.Unlock()
	return map[string]any{"forwards": out}, nil
}

// closeForward ends a forward and removes it from the list.
func (h *Handler) closeForward(r *http.Request, _ *user) (any, error) {
	h.forwards.mu.Lock()
	defer h.forwards.mu.Unlock()
	for i, f := range h.forwards.list {
		if f.h == h && strconv.FormatInt(f.currentState().ID, 10) == r.PathValue("id") {
			f.cancel()
			h.forwards.list = slices.Delete(h.forwards.list, i, i+1)
			return map[string]any{}, nil
		}
	}
	return nil, newRequestError(http.StatusNotFound, "there is no such forward")
}

// close ends all forwards. No further forward can begin.
func (fs *forwards) close() {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.closed = true
	for _, f := range fs.list {
		f.cancel()
	}
}

func listenForward(ctx context.Context) (net.Listener, error) {
	var lc net.ListenConfig
	var err error
	for range forwardPortTries {
		port := firstForwardPort + rand.IntN(lastForwardPort-firstForwardPort+1) //nolint:gosec // no secret
		var l net.Listener
		if l, err = lc.Listen(ctx, "tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil {
			return l, nil
		}
	}
	return nil, fmt.Errorf("opening a port between %d and %d: %w", firstForwardPort, lastForwardPort, err)
}

func (f *forward) currentState() forwardState {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.state
}

func (f *forward) change(how func(s *forwardState)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	how(&f.state)
}

// run accepts connections until ctx is done or the pod is deleted or has ended.
func (f *forward) run(ctx context.Context) {
	var running sync.WaitGroup
	defer running.Wait()
	defer f.cancel()
	running.Go(func() {
		<-ctx.Done()
		_ = f.listener.Close() // ends Accept
	})
	running.Go(func() { f.watchPod(ctx) })
	places := make(chan struct{}, maxForwardConns)
	for {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return
		}
		conn, err := f.listener.Accept()
		if err != nil {
			f.stop(fmt.Sprintf("the port cannot be used any more: %v", err)) // not shown when the user has ended the forward
			return
		}
		f.change(func(s *forwardState) { s.Open++; s.Opened++ })
		running.Go(func() {
			// A pod that reads nothing blocks even the end of a connection to it.
			_, err := await(ctx, func() (struct{}, error) { return struct{}{}, f.serve(ctx, conn) }, func(struct{}) {})
			f.change(func(s *forwardState) {
				if s.Open--; err != nil && ctx.Err() == nil {
					s.Failed, s.Error = s.Failed+1, err.Error()
				}
			})
			<-places
		})
	}
}

// stop ends the forward and records the reason.
func (f *forward) stop(why string) {
	f.change(func(s *forwardState) {
		s.Ended = cmp.Or(s.Ended, why)
	})
	f.cancel()
}

// watchPod ends the forward when the pod is deleted or has ended.
func (f *forward) watchPod(ctx context.Context) {
	for timers.Sleep(ctx, f.poll) {
		if why := f.refusalReason(ctx); why != "" {
			f.stop(why)
			return
		}
	}
}

// refusalReason returns the reason for which a pod accepts no more connections. It returns "" while the pod accepts
// them, or when the API gives no answer.
func (f *forward) refusalReason(ctx context.Context) string {
	var pod corev1.Pod
	err := f.u.get(ctx, f.path, nil, &pod)
	switch {
	case apierrors.IsNotFound(err):
		return "the pod was deleted"
	case err != nil:
		return ""
	case pod.UID != f.uid:
		return "the pod was deleted, and there is another one of its name"
	case pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed:
		return "the pod has ended"
	}
	return ""
}

func podPath(pod *corev1.Pod) string {
	return "/api/v1/namespaces/" + url.PathEscape(pod.Namespace) + "/pods/" + url.PathEscape(pod.Name)
}
