// SPDX-License-Identifier: Apache-2.0

package trial

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestCandidateHasToDoWhatHeldBefore(t *testing.T) {
	failing := func(conditions ...string) Facts {
		f := Facts{Failing: map[string]string{}}
		for _, c := range conditions {
			f.Failing[c] = "why"
		}
		return f
	}
	pods := func(ready ...string) Facts {
		f := Facts{Pods: map[string]Pod{"a": {Name: "x/a"}, "b": {Name: "x/b"}, "c": {Name: "x/c"}, "d": {Name: "x/d"}}}
		for _, uid := range ready {
			f.Pods[uid] = Pod{Name: "x/" + uid, Ready: true}
		}
		return f
	}
	without := pods("b")
	delete(without.Pods, "a")
	runs := func(ready bool, c Container) Facts {
		return Facts{Pods: map[string]Pod{"a": {Name: "x/a", Ready: ready, Containers: map[string]Container{"web": c}}}}
	}
	first, steady := Container{ID: "1", Restarts: 2}, Container{ID: "1", Restarts: 2, Steady: true}
	second, lost := Container{ID: "2", Restarts: 3}, []string{"containers: restarted: web of x/a"}
	for _, tt := range []struct {
		name        string
		before, now Facts
		want        []string
	}{
		{name: "nothing is known and nothing fails"},
		{name: "all is well", before: pods("a"), now: pods("a", "b")},
		{name: "what fails now", now: failing("node", "cluster DNS"), want: []string{"cluster DNS: why", "node: why"}},
		{name: "what failed before", before: failing("node"), now: failing("node")},
		{name: "another part than before", before: failing("part proxy"), now: failing("part proxy", "part dns"),
			want: []string{"part dns: why"}},
		{name: "a pod that is not ready any more", before: pods("a", "b"), now: pods("b"), want: []string{"pods: no longer ready: x/a"}},
		{name: "a pod that was not ready", before: pods("b"), now: pods("b")},
		{name: "a pod that is gone", before: pods("a", "b"), now: without},
		{name: "many pods", before: pods("a", "b", "c", "d"), now: pods(),
			want: []string{"pods: no longer ready: x/a, x/b, x/c, and 1 more"}},
		{name: "pods that cannot be listed", before: pods("a"), now: failing("pods"), want: []string{"pods: why"}},
		{name: "a container runs on", before: runs(true, steady), now: runs(true, steady)},
		{name: "a container is another one", before: runs(true, steady), now: runs(true, second), want: lost},
		{name: "a container is counted on", before: runs(true, steady), now: runs(true, Container{ID: "1", Restarts: 3}), want: lost},
		{name: "a container has ended", before: runs(true, steady), now: runs(true, first)},
		{name: "a container that is often restarted", before: runs(true, first), now: runs(true, second)},
		{name: "a container of a pod that was not ready", before: runs(false, steady), now: runs(true, second)},
		{name: "the pod of a container is gone", before: runs(true, steady), now: Facts{Pods: map[string]Pod{"b": {}}}},
		{name: "the machine has lost its power", before: runs(true, steady), now: Facts{Boot: "2", Pods: runs(true, second).Pods}},
		{name: "no containers are known before", before: pods("a"), now: Facts{Pods: runs(true, second).Pods}},
		{name: "shims", before: Facts{FailedShims: 2}, now: Facts{FailedShims: 1},
			want: []string{"shims: 1 could not be loaded, so their containers were ended: the log of coracle says why"}},
		{name: "shims of the version before", before: Facts{FailedShims: 2}},
		{name: "memory", before: Facts{Memory: 100 << 20}, now: Facts{Memory: 150 << 20}},
		{name: "too much memory", before: Facts{Memory: 100 << 20}, now: Facts{Memory: 151 << 20},
			want: []string{"memory: the process has 151 MB, more than 1.5 times the 100 MB of the version before"}},
		{name: "memory without a baseline", now: Facts{Memory: 1 << 40}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			testenv.EqualSlices(t, Judge(tt.before, tt.now), tt.want, "failing:")
		})
	}
}

// TestContainersAreSteady: one that was restarted lately is expected to be restarted again.
func TestContainersAreSteady(t *testing.T) {
	running := func(ago time.Duration) corev1.ContainerState {
		return corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.NewTime(time.Now().Add(-ago))}}
	}
	p := &corev1.Pod{Status: corev1.PodStatus{
		ContainerStatuses: []corev1.ContainerStatus{
			{Name: "new", ContainerID: "1", State: running(time.Second)},
			{Name: "restarted", ContainerID: "2", RestartCount: 1, State: running(59 * time.Minute)},
			{Name: "since long", ContainerID: "3", RestartCount: 1, State: running(61 * time.Minute)},
			{Name: "waits", ContainerID: "4", RestartCount: 9},
		},
		InitContainerStatuses: []corev1.ContainerStatus{
			{Name: "beside", ContainerID: "5", State: running(time.Second)},
			{Name: "done", ContainerID: "6", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}},
		},
	}}
	testenv.Equal(t, fmt.Sprint(containersOf(p)), "map[beside:{5 0 true} done:{6 0 false} new:{1 0 true} restarted:{2 1 false} "+
		"since long:{3 1 true} waits:{4 9 false}]", "containers:")
}

// TestGateOpensAfterSoak: all conditions have to hold together for the whole time, however the clock is set.
func TestGateOpensAfterSoak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began, node := time.Now(), "it is not Ready"
		var changes [][]string
		g := Gate{Soak: time.Minute, Changed: func(failing []string) { changes = append(changes, failing) },
			Observe: func(context.Context) Facts {
				switch up := time.Since(began); {
				case up >= 100*time.Second && up < 103*time.Second: // one observation
					return Facts{Failing: map[string]string{"cluster DNS": "no answer"}}
				case up < 42*time.Second:
					node += "!" // a reason that changes all the time is no news
					return Facts{Failing: map[string]string{"node": node}}
				}
				return Facts{}
			}}
		testenv.NoError(t, g.Wait(t.Context()))
		testenv.Equal(t, time.Since(began), 165*time.Second, "the gate opened after") // 105 s and the soak
		testenv.Equal(t, len(changes), 4, "%v", changes)
		testenv.EqualSlices(t, changes[0], []string{"node: it is not Ready!"}, "first")
		testenv.EqualSlices(t, changes[2], []string{"cluster DNS: no answer"}, "third")
	})
}

// TestGateStaysClosed: a candidate that never meets the conditions waits for the starter. An observation that hangs is
// bounded.
func TestGateStaysClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		g := Gate{Soak: time.Minute, Changed: func([]string) {}, Observe: func(ctx context.Context) Facts {
			<-ctx.Done()
			return Facts{Failing: map[string]string{"API server": ctx.Err().Error()}}
		}}
		testenv.ErrorIs(t, g.Wait(ctx), context.DeadlineExceeded)
	})
}

// TestGateEndsInTimeWhateverElseIsSlow: neither the operator's own check nor an API that does not answer for a moment
// delays the end until the pods are gone.
func TestGateEndsInTimeWhateverElseIsSlow(t *testing.T) {
	pods := map[string]Pod{}
	notReady := Facts{Failing: map[string]string{"node": "it is not Ready"}, Pods: pods, Tolerated: time.Minute}
	for name, observe := range map[string]func(ctx context.Context, n int) Facts{
		"the own check": func(ctx context.Context, _ int) Facts {
			timers.Sleep(ctx, ownTimeout)
			return notReady
		},
		"the API": func(_ context.Context, n int) Facts {
			if n == 5 {
				return Facts{Failing: map[string]string{"API server": "it says that it is not ready"}}
			}
			return notReady
		},
		"the process": func(_ context.Context, n int) Facts {
			if n == 5 {
				return Facts{Failing: map[string]string{"process": "it does not answer"}}
			}
			return notReady
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began, n := time.Now(), 0
				g := Gate{Soak: time.Hour, Changed: func([]string) {}, Observe: func(ctx context.Context) Facts {
					n++
					return observe(ctx, n)
				}}
				testenv.ErrorIs(t, g.Wait(t.Context()), errNodeNotReady)
				testenv.True(t, time.Since(began) < 50*time.Second, "it ended after %s", time.Since(began))
			})
		})
	}
}

// TestPodsThatCannotStayCountForNothing: they are evicted at once, whatever the gate does.
func TestPodsThatCannotStayCountForNothing(t *testing.T) {
	pod := func(key string, seconds ...int64) (p corev1.Pod) {
		for _, s := range seconds {
			p.Spec.Tolerations = append(p.Spec.Tolerations, corev1.Toleration{Key: key, Operator: corev1.TolerationOpExists,
				Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &s})
		}
		return p
	}
	key := corev1.TaintNodeNotReady
	for name, tt := range map[string]struct {
		pods []corev1.Pod
		want time.Duration
	}{
		"the shortest": {[]corev1.Pod{pod(key, 90), pod(key, 60), pod(key, 300)}, time.Minute},
		"zero":         {[]corev1.Pod{pod(key, 60), pod(key, 0), pod(key, 300)}, time.Minute},
		"negative":     {[]corev1.Pod{pod(key, 60), pod(key, -5), pod(key, 300)}, time.Minute},
		"any taint":    {[]corev1.Pod{pod("", 45), pod(key, 60)}, 45 * time.Second},
		"another one":  {[]corev1.Pod{pod(corev1.TaintNodeUnschedulable, 5)}, 0},
	} {
		t.Run(name, func(t *testing.T) { testenv.Equal(t, tolerated(tt.pods), tt.want, "tolerated:") })
	}
}

// TestGateEndsBeforePodsAreEvicted: a candidate whose node is not Ready goes back while the node still has its pods.
func TestGateEndsBeforePodsAreEvicted(t *testing.T) {
	notReady, pods := map[string]string{"node": "it is not Ready"}, map[string]Pod{}
	for name, tt := range map[string]struct {
		before             map[string]string
		tolerated, readyAt time.Duration
		want               time.Duration // of the trial; 0 if the starter ends it
	}{
		"as coracle sets it":           {tolerated: 60 * time.Second, want: 40 * time.Second},
		"pods that stay for longer":    {tolerated: 5 * time.Minute, want: 200 * time.Second},
		"pods that stay nowhere":       {tolerated: 5 * time.Second, want: 40 * time.Second},
		"pods that stay for ever":      {},
		"Ready in between":             {tolerated: 60 * time.Second, readyAt: 35 * time.Second, want: 80 * time.Second},
		"it was not Ready before that": {before: notReady, tolerated: 60 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
				defer cancel()
				g := Gate{Before: Facts{Failing: tt.before}, Soak: time.Hour, Changed: func([]string) {}, Observe: func(context.Context) Facts {
					if tt.readyAt > 0 && time.Since(began) == tt.readyAt {
						return Facts{Failing: map[string]string{"process": "it is not ready yet"}, Pods: pods, Tolerated: tt.tolerated}
					}
					return Facts{Failing: notReady, Pods: pods, Tolerated: tt.tolerated}
				}}
				want := error(context.DeadlineExceeded)
				if tt.want > 0 {
					want = errNodeNotReady
				}
				testenv.ErrorIs(t, g.Wait(ctx), want)
				if tt.want > 0 {
					testenv.Equal(t, time.Since(began), tt.want, "the gate ended after")
				}
			})
		})
	}
}

func TestOwnCheckDecidesByExitCode(t *testing.T) {
	dir := t.TempDir()
	for name, tt := range map[string]struct{ script, want string }{
		"none":    {},
		"passes":  {script: "#!/bin/sh\necho fine\n"},
		"fails":   {script: "#!/bin/sh\necho the shop is closed >&2; exit 4\n", want: "exit status 4: the shop is closed"},
		"no text": {script: "#!/bin/sh\nexit 1\n", want: "exit status 1"},
		"no ELF":  {script: "nonsense", want: "exec format error"},
	} {
		t.Run(name, func(t *testing.T) {
			o := Observer{Check: filepath.Join(dir, name)}
			if tt.script != "" {
				testenv.NoError(t, os.WriteFile(o.Check, []byte(tt.script), 0o755))
			}
			f := &findings{out: Facts{Failing: map[string]string{}}}
			o.observeOwnCheck(t.Context(), f)
			testenv.Contains(t, f.out.Failing[condOwn], tt.want, "reason")
			testenv.Equal(t, len(f.out.Failing) > 0, tt.want != "", "%v", f.out.Failing)
		})
	}
	t.Run("ends with the observation", func(t *testing.T) {
		o := Observer{Check: filepath.Join(dir, "hangs")}
		testenv.NoError(t, os.WriteFile(o.Check, []byte("#!/bin/sh\nexec sleep 600\n"), 0o755))
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(errors.New("enough"))
		f := &findings{out: Facts{Failing: map[string]string{}}}
		o.observeOwnCheck(ctx, f)
		testenv.True(t, f.out.Failing[condOwn] != "", "a check that did not end held")
	})
}
