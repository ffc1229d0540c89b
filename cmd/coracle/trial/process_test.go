// SPDX-License-Identifier: Apache-2.0

package trial

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/internal/bundle"
	"github.com/coracle-k8s/coracle/internal/slots"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const (
	oldDigest = "1111111111111111111111111111111111111111111111111111111111111111"
	newDigest = "2222222222222222222222222222222222222222222222222222222222222222"
)

// machine is a machine with two versions, of which one is on trial, and an API that has its node.
type machine struct {
	t        *testing.T
	versions *slots.Versions
	board    *status.Board
	admin    *status.Server

	mu     sync.Mutex
	ready  corev1.ConditionStatus
	pods   []corev1.Pod
	events []corev1.Event
	ended  bool
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	t.Setenv(SoakVariable, "0s")
	dir := t.TempDir()
	m := &machine{t: t, versions: slots.Below(dir), ready: corev1.ConditionTrue, board: status.NewBoard(time.Now)}
	for _, digest := range []string{oldDigest, newDigest} {
		testenv.NoError(t, os.MkdirAll(filepath.Join(m.versions.Dir, digest), 0o755))
		testenv.NoError(t, os.WriteFile(m.versions.ProgramOf(digest), nil, 0o755))
	}
	testenv.NoError(t, os.Symlink(oldDigest, filepath.Join(m.versions.Dir, "current")))
	testenv.NoError(t, m.versions.Begin(newDigest))
	m.admin = status.NewServer(filepath.Join(dir, "admin.sock"), status.Report{Role: "agent", Node: "board"}, m.board)
	l := testenv.Must(m.admin.Listen())(t)
	go func() { _ = m.admin.Serve(t.Context(), l) }() // it ends with the test
	api := httptest.NewServer(http.HandlerFunc(m.serve))
	t.Cleanup(api.Close)
	kubeconfig := "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: '" + api.URL +
		"'}}]\ncontexts: [{name: c, context: {cluster: c}}]\ncurrent-context: c\n"
	testenv.NoError(t, os.WriteFile(filepath.Join(dir, "kubeconfig"), []byte(kubeconfig), 0o600))
	return m
}

func (m *machine) serve(w http.ResponseWriter, r *http.Request) {
	m.mu.Lock()
	defer m.mu.Unlock()
	meta := func(kind string) metav1.TypeMeta { return metav1.TypeMeta{APIVersion: "v1", Kind: kind} }
	var out any
	switch path := r.URL.Path; {
	case path == "/readyz":
	case path == "/api/v1/nodes/board":
		n := corev1.Node{TypeMeta: meta("Node")}
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: m.ready, Message: "no CNI"}}
		out = n
	case path == "/api/v1/pods":
		out = corev1.PodList{TypeMeta: meta("PodList"), Items: m.pods}
	case strings.HasSuffix(path, "/events") && r.Method == http.MethodPost:
		var e corev1.Event
		if err := json.NewDecoder(r.Body).Decode(&e); err == nil {
			m.events = append(m.events, e)
		}
		out = e
	default: // there are no Services, before the switch and after it
		w.WriteHeader(http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if out != nil {
		_ = json.NewEncoder(w).Encode(out) // the client has the error
	}
}

func (m *machine) observer() Observer {
	dir := filepath.Dir(m.versions.Dir)
	return Observer{AdminSocket: filepath.Join(dir, "admin.sock"), Kubeconfig: filepath.Join(dir, "kubeconfig"), Check: filepath.Join(dir, "none")}
}

// start starts what a version's process does for it, until the test ends.
func (m *machine) start(digest string) (stop func()) {
	return Process{
		Versions: m.versions, Digest: digest, Version: "v-" + digest[:1], Node: "board", Logger: slog.New(slog.DiscardHandler),
		Observer: m.observer(),
		End: func() {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.ended = true
		},
	}.Start(m.t.Context())
}

func (m *machine) baseline(f Facts) {
	m.t.Helper()
	data := testenv.Must(json.Marshal(f))(m.t)
	testenv.NoError(m.t, os.WriteFile(m.versions.Slot(newDigest, slots.BaselineFile), data, 0o600))
}

func (m *machine) eventIs(reason, message string) func() bool {
	return func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return len(m.events) == 1 && m.events[0].Reason == reason && strings.Contains(m.events[0].Message, message) &&
			m.events[0].InvolvedObject.Name == "board"
	}
}

func (m *machine) state() slots.State {
	m.t.Helper()
	return testenv.Must(m.versions.State())(m.t)
}

// withoutServices is a baseline of a machine that has neither Services nor a cluster DNS, as the one of these tests.
var withoutServices = Facts{Failing: map[string]string{condService: "none", condDNS: "none"}}

func TestCandidateCommitsItself(t *testing.T) {
	m := newMachine(t)
	m.baseline(withoutServices)
	m.admin.SetReady(time.Now())
	testenv.NoError(t, bundle.Accepted{Counter: 7}.Write(m.versions.Slot(newDigest, slots.AcceptedFile)))
	defer m.start(newDigest)()
	testenv.Until(t, 10*time.Second, "the commit", func() bool { return m.state().Current == newDigest })
	testenv.Until(t, 10*time.Second, "the Event", m.eventIs("UpgradeCommitted", "coracle v-2 is committed"))
	testenv.Equal(t, m.state(), slots.State{Current: newDigest, Previous: oldDigest}, "state:")
	had := testenv.Must(bundle.ReadAccepted(filepath.Join(m.versions.Dir, slots.AcceptedFile)))(t)
	testenv.Equal(t, had.Counter, 7, "the counter that is on record once a version is committed")
}

// TestCandidateSaysWhatFails: what keeps a candidate from being committed outlives its process, and is reported once by
// the version before.
func TestCandidateSaysWhatFails(t *testing.T) {
	m := newMachine(t)
	m.baseline(withoutServices)
	m.ready = corev1.ConditionFalse
	m.board.Part("dns").Set(status.Starting, "waiting for names")
	m.board.Part("proxy").Set(status.Failed, "no rules")
	stop := m.start(newDigest)
	want := []string{"node: it is not Ready: no CNI", "part dns: starting: waiting for names", "part proxy: failed: no rules", "process: it is not ready yet"}
	testenv.Until(t, 10*time.Second, "the reasons", func() bool { _, known := Failing(m.versions, newDigest); return known })
	stop()
	failing, _ := Failing(m.versions, newDigest)
	testenv.EqualSlices(t, failing, want, "failing:")
	testenv.NoError(t, m.versions.Back("no commit within 600 s"))
	message := "coracle v-1 runs again, because version 222222222222 was refused: no commit within 600 s: " + strings.Join(want, "; ")
	for range 2 { // the second start has nothing to report
		stop = m.start(oldDigest)
		testenv.Until(t, 10*time.Second, "the Event", m.eventIs("UpgradeRefused", message))
		testenv.Until(t, 10*time.Second, "that the refused program is pruned",
			func() bool { return os.IsNotExist(testenv.Err(os.Stat(m.versions.ProgramOf(newDigest)))) })
		stop()
	}
	testenv.Equal(t, *m.state().Refused, slots.Refusal{Digest: newDigest, Reason: "no commit within 600 s: " + strings.Join(want, "; "),
		Reported: true}, "refusal:")
}

// TestCandidateKeepsContainers: a candidate in which a pod's container was replaced is not committed, though the pod is
// ready again.
func TestCandidateKeepsContainers(t *testing.T) {
	m := newMachine(t)
	pod := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop", UID: "1"}, Status: corev1.PodStatus{
		Conditions:        []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
		ContainerStatuses: []corev1.ContainerStatus{{Name: "c", ContainerID: "containerd://1", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}},
	}}
	m.pods = []corev1.Pod{pod}
	m.admin.SetReady(time.Now())
	m.admin.SetFailedShims(2) // of the version before: that is its own affair
	before := m.observer().Observe(t.Context())
	m.baseline(before)
	m.pods[0].Status.ContainerStatuses[0].ContainerID, m.pods[0].Status.ContainerStatuses[0].RestartCount = "containerd://2", 1
	m.admin.SetFailedShims(1)
	defer m.start(newDigest)()
	want := []string{"containers: restarted: c of shop/web", "shims: 1 could not be loaded, so their containers were ended: the log of coracle says why"}
	testenv.Until(t, 10*time.Second, "the reasons", func() bool { _, known := Failing(m.versions, newDigest); return known })
	failing, _ := Failing(m.versions, newDigest)
	testenv.EqualSlices(t, failing, want, "failing:")
}

// TestCandidateEndsWhenRefused: a candidate that was refused before its commit ends, so that the version before runs.
func TestCandidateEndsWhenRefused(t *testing.T) {
	m := newMachine(t)
	m.baseline(withoutServices)
	defer m.start(newDigest)()
	testenv.Until(t, 10*time.Second, "an observation", func() bool { _, known := Failing(m.versions, newDigest); return known })
	testenv.NoError(t, m.versions.Back("too late"))
	m.admin.SetReady(time.Now())
	testenv.Until(t, 20*time.Second, "the end", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.ended
	})
	testenv.Equal(t, m.state().Current, oldDigest, "current:")
}

// TestOtherVersionsDoNothing: outside of a trial there is neither a goroutine nor a file.
func TestOtherVersionsDoNothing(t *testing.T) {
	m := newMachine(t)
	testenv.NoError(t, os.Remove(filepath.Join(m.versions.Dir, "trial")))
	defer m.start(oldDigest)()
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)] // a count would have those of the test's servers
	testenv.False(t, strings.Contains(string(stacks), "trial.Process."), "a goroutine is there:\n%s", stacks)
}
