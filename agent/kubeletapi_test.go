// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// ways is what comes of requests from a time on.
type ways struct {
	from                 time.Duration
	own, another, report error // errBlocked: the request is not answered
}

var (
	errBlocked = errors.New("no answer")
	errClosed  = errors.New("connection refused")
	errExpiry  = error(apierrors.NewUnauthorized("expired"))
)

// A happening is what a node did, and when.
type happening struct {
	at   time.Duration
	what string
}

// happensBeside runs a node for so long, while the ways to the API change.
func happensBeside(t *testing.T, long time.Duration, changes ...ways) (all []happening) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), long)
		defer cancel()
		happens := func(what string) { all = append(all, happening{time.Since(began), what}) }
		request := func(of func(ways) error) func(context.Context) error {
			return func(ctx context.Context) error {
				var now ways
				for _, w := range changes {
					if time.Since(began) >= w.from {
						now = w
					}
				}
				err := of(now)
				if err == errBlocked {
					<-ctx.Done()
					return ctx.Err()
				}
				return err
			}
		}
		refuses := false
		k := &kubeletAPI{
			tryOwn: request(func(w ways) error { return w.own }), tryAnother: request(func(w ways) error { return w.another }),
			report: func(ctx context.Context, _ string) error {
				err := request(func(w ways) error { return w.report })(ctx)
				if err == nil {
					happens("not ready")
				}
				return err
			},
			refused: func(is bool) {
				if refuses != is {
					happens(map[bool]string{true: "silent", false: "heard"}[is])
				}
				refuses = is
			},
			regain: func() { happens("report asked for") }, log: slog.New(slog.DiscardHandler),
		}
		k.run(ctx)
	})
	return all
}

// happened checks what happened, in order, each within a span of time.
func happened(t *testing.T, all []happening, want ...string) {
	t.Helper()
	var got []string
	for _, h := range all {
		got = append(got, h.what)
	}
	testenv.EqualSlices(t, got, want, "what happened")
}

func within40s(t *testing.T, lost time.Duration, h happening) {
	t.Helper()
	if took := h.at - lost; took > withoutAPIFor || took < withoutAPIFor-askEvery {
		t.Errorf("%s after %s", h.what, took)
	}
}

// TestNodeIsNotReadyWhenItsKubeletLosesTheAPI: 40 s at most after the kubelet alone has lost the API the node is not
// ready, however requests fail and whenever it began; and the kubelet is asked to report as soon as it has the API
// again.
func TestNodeIsNotReadyWhenItsKubeletLosesTheAPI(t *testing.T) {
	for _, failure := range []error{errClosed, errBlocked, errExpiry} {
		t.Run(strings.ReplaceAll(failure.Error(), " ", "-"), func(t *testing.T) {
			for after := time.Duration(0); after < askEvery; after += 333 * time.Millisecond {
				lost, back, again := time.Minute+after, 5*time.Minute+after, 7*time.Minute+after
				all := happensBeside(t, 10*time.Minute, ways{from: lost, own: failure}, ways{from: back}, ways{from: again, own: failure})
				all = slices.DeleteFunc(all, func(h happening) bool { return h.what == "silent" || h.what == "heard" })
				happened(t, all, "not ready", "report asked for", "not ready")
				within40s(t, lost, all[0])
				if took := all[1].at - back; took > askAgain+askTimeout {
					t.Errorf("the kubelet is asked to report after %s", took)
				}
				within40s(t, again, all[2])
				testenv.Require(t, !t.Failed(), "lost after %s: %v", lost, all)
			}
		})
	}
}

// TestServersThatAreDownMakeNoNodeUnready: only the kubelet's own way counts, from when another one leads to the API;
// and a report that arrives nowhere is repeated.
func TestServersThatAreDownMakeNoNodeUnready(t *testing.T) {
	for _, down := range []error{errClosed, errBlocked} {
		followed := time.Hour + withoutAPIFor/2
		happened(t, happensBeside(t, 2*time.Hour, ways{from: time.Minute, own: down, another: down},
			ways{from: time.Hour, own: down}, ways{from: followed}))

		all := happensBeside(t, 2*time.Hour, ways{from: time.Minute, own: down, another: down},
			ways{from: time.Hour, own: down, report: down}, ways{from: time.Hour + 2*time.Minute, own: down})
		happened(t, all, "not ready")
		if took := all[0].at - time.Hour; took < 2*time.Minute || took > 2*time.Minute+askAgain+2*askTimeout {
			t.Errorf("it is reported after %s", took)
		}
	}
}

// TestRefusedKubeletIsNotHeard: where the API server refuses the credentials with which the node would report, servers
// are not to hear it until that ends. One refusal alone is nothing.
func TestRefusedKubeletIsNotHeard(t *testing.T) {
	all := happensBeside(t, time.Hour, ways{from: time.Minute, own: errExpiry, report: errExpiry}, ways{from: 30 * time.Minute})
	happened(t, all, "silent", "heard")
	if took := all[0].at - time.Minute; took > askEvery+askAgain {
		t.Errorf("servers hear it for %s", took)
	}
	if took := all[1].at - 30*time.Minute; took > askAgain {
		t.Errorf("servers do not hear it for %s afterwards", took)
	}
	happened(t, happensBeside(t, time.Hour, ways{from: time.Minute, own: errExpiry},
		ways{from: time.Minute + time.Second, own: errClosed}, ways{from: time.Minute + 3*time.Second, own: errExpiry},
		ways{from: time.Minute + 5*time.Second}))
}
