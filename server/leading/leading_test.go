// SPDX-License-Identifier: Apache-2.0

package leading

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/coracle-k8s/coracle/controllers/helmcharts"
	"github.com/coracle-k8s/coracle/controllers/term"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// loops records how follow runs terms.
type loops struct {
	mu     sync.Mutex
	events []string
	now    int // running at this moment
	fail   error
}

func (l *loops) note(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, fmt.Sprintf(format, args...))
}

func (l *loops) run(ctx context.Context, number uint64) error {
	l.mu.Lock()
	l.now++
	if l.now > 1 {
		l.events = append(l.events, "two at once")
	}
	fail := l.fail
	l.mu.Unlock()
	defer func() { l.mu.Lock(); l.now--; l.mu.Unlock() }()
	l.note("start %d", number)
	defer l.note("end %d", number)
	if fail != nil {
		return fail
	}
	<-ctx.Done()
	time.Sleep(time.Second) // stopping takes its time
	return nil
}

func (l *loops) check(t *testing.T, want ...string) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	testenv.EqualSlices(t, l.events, want, "")
	l.events = nil
}

func TestLoopsFollowLeadership(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(Options{Logger: slog.New(slog.DiscardHandler)})
		l := &loops{}
		leadership := make(chan raftstore.Leadership, 1)
		ctx, cancel := context.WithCancelCause(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); f.follow(ctx, cancel, leadership, l.run) }()

		leadership <- raftstore.Leadership{Term: 1}
		synctest.Wait()
		l.check(t)
		leadership <- raftstore.Leadership{Leader: true, Term: 2}
		synctest.Wait()
		l.check(t, "start 2")
		// The next term without a word about the loss of this one.
		leadership <- raftstore.Leadership{Leader: true, Term: 4}
		time.Sleep(2 * time.Second)
		l.check(t, "end 2", "start 4")
		leadership <- raftstore.Leadership{Term: 5}
		time.Sleep(2 * time.Second)
		l.check(t, "end 4")

		// Loops that fail are started again, as long as this server leads.
		l.fail = errors.New("a loop fails")
		leadership <- raftstore.Leadership{Leader: true, Term: 6}
		time.Sleep(termRetry + time.Second)
		l.check(t, "start 6", "end 6", "start 6", "end 6")
		leadership <- raftstore.Leadership{Term: 7}
		time.Sleep(10 * termRetry)
		l.check(t)

		// A term whose writes are refused is over, whatever this server has heard of its leadership.
		l.fail = fmt.Errorf("%w; and more", ErrTermOver)
		leadership <- raftstore.Leadership{Leader: true, Term: 8}
		time.Sleep(10 * termRetry)
		l.check(t, "start 8", "end 8")

		// Goroutines that cannot be stopped end the process' part in it.
		l.fail = fmt.Errorf("%w: 3", term.ErrStragglers)
		leadership <- raftstore.Leadership{Leader: true, Term: 10}
		<-done
		testenv.ErrorIs(t, context.Cause(ctx), term.ErrStragglers, "ended with")
		l.check(t, "start 10", "end 10")
	})
}

// TestOnlyDefinedKindsAreAwaited: only kinds that are defined here are on their way.
func TestOnlyDefinedKindsAreAwaited(t *testing.T) {
	for of, want := range map[schema.GroupKind]bool{
		{Group: "helm.cattle.io", Kind: "HelmChart"}:             true,
		{Group: "gateway.networking.k8s.io", Kind: "HTTPRoute"}:  true,
		{Group: "gateway.networking.k8s.io", Kind: "UDPRoute"}:   false, // of another channel
		{Group: "gateway.example.com", Kind: "HTTPRoute"}:        false,
		{Group: "monitoring.coreos.com", Kind: "ServiceMonitor"}: false,
	} {
		l := New(Options{})
		testenv.Equal(t, l.wantKind(of), want, "%v is on its way:", of)
		testenv.Equal(t, len(l.helmWanted)+len(l.gatewayWanted) == 1, want, "%v is defined at once:", of)
		l = New(Options{Cluster: clusterconfig.Settings{Disabled: clusterconfig.Disabled{clusterconfig.PartGateway}}, Helm: helmcharts.Options{Disabled: true}})
		testenv.Equal(t, l.wantKind(of), false, "%v is on its way where it is disabled:", of)
	}
}
