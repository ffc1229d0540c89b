// SPDX-License-Identifier: Apache-2.0

package podstop

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crilabels "k8s.io/kubelet/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// fakeRuntime has containers that end some time after their stop signal, or not before they are killed.
type fakeRuntime struct {
	began time.Time
	stuck bool // calls do not return

	mu         sync.Mutex
	containers []*runtimeapi.Container
	endAfter   map[string]time.Duration // 0: at once; longer than the grace period: killed
	immortal   string                   // the id of a container that cannot be killed
	events     []string
}

func newRuntime() *fakeRuntime {
	return &fakeRuntime{began: time.Now(), endAfter: map[string]time.Duration{}}
}

// add adds a running container. Its pod has the name and UID of the part before the dot.
func (r *fakeRuntime) add(namespace, id string, annotations map[string]string) *runtimeapi.Container {
	pod, name, _ := strings.Cut(id, ".")
	c := &runtimeapi.Container{
		Id: id, PodSandboxId: pod, State: runtimeapi.ContainerState_CONTAINER_RUNNING, Annotations: annotations,
		Labels: map[string]string{crilabels.KubernetesPodNamespaceLabel: namespace, crilabels.KubernetesPodNameLabel: pod,
			crilabels.KubernetesPodUIDLabel: pod, crilabels.KubernetesContainerNameLabel: name},
	}
	r.containers = append(r.containers, c)
	return c
}

func (r *fakeRuntime) record(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, fmt.Sprintf("%v ", time.Since(r.began))+fmt.Sprintf(format, args...))
}

// call blocks for ever when the runtime is stuck, whatever the context is.
func (r *fakeRuntime) call() {
	if r.stuck {
		time.Sleep(24 * time.Hour) // fake time
	}
}

func (r *fakeRuntime) ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return &runtimeapi.ListContainersResponse{Containers: slices.Clone(r.containers)}, nil
}

func (r *fakeRuntime) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	answer := &runtimeapi.ListPodSandboxResponse{}
	for _, c := range r.containers {
		if !slices.ContainsFunc(answer.Items, func(s *runtimeapi.PodSandbox) bool { return s.Id == c.PodSandboxId }) {
			answer.Items = append(answer.Items, &runtimeapi.PodSandbox{Id: c.PodSandboxId})
		}
	}
	return answer, nil
}

func (r *fakeRuntime) PodSandboxStatus(context.Context, *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	return nil, errors.New("no status")
}

func (r *fakeRuntime) ExecSync(_ context.Context, in *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	r.call()
	r.record("exec in %s: %s", in.ContainerId, strings.Join(in.Cmd, " "))
	if in.Cmd[0] == "false" {
		return &runtimeapi.ExecSyncResponse{ExitCode: 1, Stderr: []byte("no")}, nil
	}
	return &runtimeapi.ExecSyncResponse{}, nil
}

func (r *fakeRuntime) StopContainer(ctx context.Context, in *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	r.call()
	r.record("stop %s within %ds", in.ContainerId, in.Timeout)
	if in.ContainerId == r.immortal {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	time.Sleep(min(r.endAfter[in.ContainerId], time.Duration(in.Timeout)*time.Second)) // fake time
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, c := range r.containers {
		if c.Id == in.ContainerId {
			ended := *c //nolint:govet // the lock of a message that is not used
			ended.State = runtimeapi.ContainerState_CONTAINER_EXITED
			r.containers[i] = &ended
		}
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

func (r *fakeRuntime) StopPodSandbox(_ context.Context, in *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	r.call()
	r.record("stop sandbox %s", in.PodSandboxId)
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

func options(r *fakeRuntime, pods ...*corev1.Pod) Options {
	return Options{Runtime: r, Within: time.Minute, Logger: slog.New(slog.DiscardHandler), Pod: func(uid string) *corev1.Pod {
		for _, p := range pods {
			if string(p.UID) == uid {
				return p
			}
		}
		return nil
	}}
}

func grace(seconds int) map[string]string {
	return map[string]string{graceAnnotation: strconv.Itoa(seconds)}
}

func hook(handler string) map[string]string {
	return map[string]string{graceAnnotation: "30", preStopAnnotation: handler}
}

// expect compares the events of the runtime, those of one moment in any order.
func (r *fakeRuntime) expect(t *testing.T, want ...string) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	got := slices.Clone(r.events)
	slices.SortStableFunc(got, func(a, b string) int {
		x, textX, _ := strings.Cut(a, " ")
		y, textY, _ := strings.Cut(b, " ")
		if x != y {
			return 0 // they are in the order of time
		}
		return strings.Compare(textX, textY)
	})
	testenv.EqualSlices(t, got, want, "the runtime was asked:\n%s\nwanted:\n%s\n", strings.Join(got, "\n"), strings.Join(want, "\n"))
}

// TestCriticalPodsEndLast: pods of users end first, each within its own grace period, which the time of the wave
// bounds. Sandboxes end when all containers have.
func TestCriticalPodsEndLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRuntime()
		r.add("default", "web.app", grace(20))
		r.add("default", "slow.app", grace(3600))
		r.add("default", "critical.app", grace(5))
		r.add("kube-system", "dns.app", grace(30))
		r.add("default", "lost.app", nil).State = runtimeapi.ContainerState_CONTAINER_UNKNOWN
		r.add("default", "old.app", nil).State = runtimeapi.ContainerState_CONTAINER_EXITED
		r.endAfter["web.app"], r.endAfter["slow.app"], r.endAfter["dns.app"] = 3*time.Second, time.Hour, time.Hour
		critical := &corev1.Pod{Spec: corev1.PodSpec{Priority: ptr.To[int32](2000000000)}}
		critical.UID = "critical"
		n, err := Stop(t.Context(), options(r, critical))
		testenv.NoError(t, err)
		testenv.Equal(t, n, 5, "containers that ran:")
		r.expect(t,
			"0s stop lost.app within 30s", "0s stop slow.app within 50s", "0s stop web.app within 20s",
			"50s stop critical.app within 5s", "50s stop dns.app within 10s",
			"1m0s stop sandbox critical", "1m0s stop sandbox dns", "1m0s stop sandbox lost", "1m0s stop sandbox old",
			"1m0s stop sandbox slow", "1m0s stop sandbox web")
	})
}

// TestSidecarsEndAfterTheOthers: a pod's sidecars end after its other containers, the last one first, and share the
// time of their wave.
func TestSidecarsEndAfterTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRuntime()
		for _, id := range []string{"web.one", "web.two", "web.app"} {
			r.add("default", id, grace(30))
			r.endAfter[id] = time.Second
		}
		always := ptr.To(corev1.ContainerRestartPolicyAlways)
		spec := &corev1.Pod{Spec: corev1.PodSpec{InitContainers: []corev1.Container{
			{Name: "setup"}, {Name: "one", RestartPolicy: always}, {Name: "two", RestartPolicy: always}}}}
		spec.UID = "web"
		testenv.NoError(t, testenv.Err(Stop(t.Context(), options(r, spec))))
		r.expect(t, "0s stop web.app within 30s", "1s stop web.two within 30s", "2s stop web.one within 30s", "3s stop sandbox web")
	})
}

// TestPreStopHooksRunBeforeTheSignal: the time of a hook counts as grace, a hook that fails or does not end stops
// nothing, and a container has two seconds after its hook.
func TestPreStopHooksRunBeforeTheSignal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRuntime()
		r.add("default", "a.exec", hook(`{"exec":{"command":["touch","file"]}}`))
		r.add("default", "b.sleep", hook(`{"sleep":{"seconds":7}}`))
		r.add("default", "c.fails", hook(`{"exec":{"command":["false"]}}`))
		r.add("default", "d.long", hook(`{"sleep":{"seconds":100}}`))
		r.add("default", "e.wrong", hook(`{`))
		testenv.NoError(t, testenv.Err(Stop(t.Context(), options(r))))
		r.expect(t, "0s exec in a.exec: touch file", "0s exec in c.fails: false",
			"0s stop a.exec within 30s", "0s stop c.fails within 30s", "0s stop e.wrong within 30s",
			"7s stop b.sleep within 23s", "30s stop d.long within 2s", "30s stop sandbox a", "30s stop sandbox b", "30s stop sandbox c",
			"30s stop sandbox d", "30s stop sandbox e")
	})
}

// TestPreStopHookOverHTTP: such a hook may name a port, and a server without TLS gets it too, as the kubelet has it.
func TestPreStopHookOverHTTP(t *testing.T) {
	l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	asked := make(chan string, 1) // one: there is one hook
	s := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked <- r.URL.Path })}
	go func() { _ = s.Serve(l) }() // it ends with Close
	defer s.Close()
	r := newRuntime()
	annotations := hook(`{"httpGet":{"path":"/bye","port":"web","scheme":"HTTPS"}}`)
	annotations[portsAnnotation] = fmt.Sprintf(`[{"name":"web","containerPort":%d}]`, l.Addr().(*net.TCPAddr).Port)
	r.add("default", "web.app", annotations)
	testenv.NoError(t, testenv.Err(Stop(t.Context(), options(r))))
	select {
	case path := <-asked:
		testenv.Equal(t, path, "/bye", "asked for:")
	default:
		t.Error("the container was stopped without its hook")
	}
}

// TestStopEndsWithAStuckRuntime: a runtime whose calls never return delays the machine for a bounded time, and the
// containers that may run are named.
func TestStopEndsWithAStuckRuntime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRuntime()
		r.stuck = true
		r.add("default", "web.app", hook(`{"exec":{"command":["true"]}}`))
		r.add("kube-system", "dns.app", nil)
		err := testenv.Err(Stop(t.Context(), options(r)))
		testenv.WantError(t, err, "default/web/app", "kube-system/dns/app")
		if took := time.Since(r.began); took > time.Minute+45*time.Second {
			t.Errorf("it took %v", took)
		}
		time.Sleep(48 * time.Hour) // fake time: the calls end
	})
	synctest.Test(t, func(t *testing.T) {
		r := newRuntime()
		r.add("default", "web.app", nil)
		r.add("default", "other.app", nil)
		r.immortal = "web.app"
		testenv.WantError(t, testenv.Err(Stop(t.Context(), options(r))), "container default/web/app still runs")
	})
}

// TestGracePeriods: a pod may ask for more seconds than an int32 or a time.Duration holds, which is as long as there
// is.
func TestGracePeriods(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"": 30 * time.Second, "many": 30 * time.Second, "0": 0, "5": 5 * time.Second,
		"2147483648": 2147483648 * time.Second, "9223372036854775807": math.MaxInt64 / time.Second * time.Second,
	} {
		testenv.Equal(t, gracePeriod(&runtimeapi.Container{Annotations: map[string]string{graceAnnotation: text}}), want, "%q:", text)
	}
}
