// SPDX-License-Identifier: Apache-2.0

package helmchild

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"helm.sh/helm/v4/pkg/release/common"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestReleaseIsInstalledUpgradedAndRemoved(t *testing.T) {
	tt := newTester(t)
	req := tt.request(web("1.0.0"))
	r := tt.do(req, helmjob.Installed, "")
	tt.wantGreeting("web", "hello")
	testenv.False(t, r.Release == nil || r.Release.Revision != 1 || r.Release.Status != "deployed", "the release is %+v", r.Release)
	tt.says(r, "chart web 1.0.0")
	m := testenv.Must(shared.client.CoreV1().ConfigMaps(tt.ns).Get(t.Context(), "web", metav1.GetOptions{}))(t)
	if f := m.ManagedFields; len(f) != 1 || f[0].Manager != "helm" || f[0].Operation != metav1.ManagedFieldsOperationApply {
		t.Errorf("the object's fields are managed by %+v, not by helm alone", f)
	}

	tt.do(tt.request(web("1.0.0")), helmjob.Unchanged, "")

	req.Values = []helmjob.Document{"greeting: one\nother: 1", "greeting: two"}
	tt.do(req, helmjob.Upgraded, "")
	tt.wantGreeting("web", "two")
	req.Set = map[string]intstr.IntOrString{"greeting": intstr.FromString("three, four=5")}
	tt.do(req, helmjob.Upgraded, "")
	tt.wantGreeting("web", "three, four=5")
	tt.do(req, helmjob.Unchanged, "")

	// A chart of another version, and values that are taken back: those of the request are all there are.
	tt.says(tt.do(tt.request(web("1.1.0")), helmjob.Upgraded, ""), "chart web 1.1.0, revision 4")
	tt.wantGreeting("web", "hello")

	secrets := testenv.Must(shared.client.CoreV1().Secrets(tt.ns).List(t.Context(), metav1.ListOptions{LabelSelector: "owner=helm"}))(t)
	if len(secrets.Items) != 4 || secrets.Items[0].Name != "sh.helm.release.v1.web.v1" || secrets.Items[0].Type != "helm.sh/release.v1" {
		t.Errorf("a user's helm does not find the release in %v", secrets.Items)
	}

	tt.do(tt.removal(), helmjob.Uninstalled, "")
	tt.wantGreeting("web", "")
	tt.says(tt.do(tt.removal(), helmjob.Uninstalled, ""), "is not there")
}

// TestUsersHelmUpgradeIsDetected looks that an upgrade by a person's own helm, which inherits our label, is not taken
// for ours.
func TestUsersHelmUpgradeIsDetected(t *testing.T) {
	tt := newTester(t)
	tt.do(tt.request(web("1.0.0")), helmjob.Installed, "")
	secrets := shared.client.CoreV1().Secrets(tt.ns)
	s := testenv.Must(secrets.Get(t.Context(), "sh.helm.release.v1.web.v1", metav1.GetOptions{}))(t)
	label, revision, ok := strings.Cut(s.Labels[digestLabel], ".")
	if !ok || len(label) != 40 || revision != "1" {
		t.Fatalf("the label is %q", s.Labels[digestLabel])
	}
	patch := fmt.Sprintf(`{"metadata":{"labels":{%q:%q}}}`, digestLabel, label+".0")
	testenv.Must(secrets.Patch(t.Context(), s.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}))(t)
	tt.do(tt.request(web("1.0.0")), helmjob.Upgraded, "")
}

func TestChangedObjectsAreRepaired(t *testing.T) {
	tt := newTester(t)
	chart := web("1.0.0").With("templates/second.yaml", configMap("second", "two"))
	for _, serverSide := range []string{"true", "false"} {
		req := tt.request(chart)
		req.ServerSide = serverSide
		if r := Do(t.Context(), Options{}, req); r.Failed() {
			t.Fatal(r.Message)
		}
		maps := shared.client.CoreV1().ConfigMaps(tt.ns)
		m := testenv.Must(maps.Get(t.Context(), "web", metav1.GetOptions{}))(t)
		m.Data["greeting"] = "changed"
		testenv.Must(maps.Update(t.Context(), m, metav1.UpdateOptions{}))(t)
		testenv.NoError(t, maps.Delete(t.Context(), "second", metav1.DeleteOptions{}))
		r := tt.do(req, helmjob.Recovered, "")
		tt.says(r, "ConfigMap "+tt.ns+"/web", "ConfigMap "+tt.ns+"/second")
		tt.wantGreeting("web", "hello")
		tt.wantGreeting("second", "two")
		testenv.Equal(t, r.Found, "drifted", "it was found")
		tt.do(req, helmjob.Unchanged, "")
	}
}

// TestInterruptedReleasesAreResumed finds a release in each state in which a child may die.
func TestInterruptedReleasesAreResumed(t *testing.T) {
	for _, status := range []common.Status{common.StatusPendingInstall, common.StatusPendingUpgrade, common.StatusPendingRollback, common.StatusUninstalling, common.StatusUnknown} {
		t.Run(status.String(), func(t *testing.T) {
			tt := newTester(t)
			tt.do(tt.request(web("1.0.0")), helmjob.Installed, "")
			if status != common.StatusPendingInstall {
				tt.do(tt.request(web("1.1.0").With("templates/left.yaml", configMap("left", "over"))), helmjob.Upgraded, "")
			}
			tt.leave(status)
			req := tt.request(web("1.2.0"))
			req.FailurePolicy = helmjob.Abort // nothing has failed
			r := tt.do(req, helmjob.Recovered, "")
			testenv.True(t, r.Found == status.String() && r.Release.Status == "deployed",
				"found %q, and the release is %+v", r.Found, r.Release)
			tt.says(r, "chart web 1.2.0")
			tt.wantGreeting("web", "hello")
			tt.wantGreeting("left", "") // of a revision that Helm forgets
			tt.do(req, helmjob.Unchanged, "")

			tt.leave(status)
			tt.do(tt.removal(), helmjob.Uninstalled, "")
			tt.wantGreeting("web", "")
		})
	}
}

// TestFailurePoliciesDecideAfterFailedInstall follows a chart that the cluster refuses half-way through the policies.
func TestFailurePoliciesDecideAfterFailedInstall(t *testing.T) {
	broken := web("1.0.0").With("templates/zz.yaml", configMap("{{ .Values.second | default \"Not_A_Name\" }}", "second"))
	mend := []helmjob.Document{"second: second"}
	t.Run("abort", func(t *testing.T) {
		tt := newTester(t)
		req := tt.request(broken)
		req.FailurePolicy = helmjob.Abort
		r := tt.do(req, "", helmjob.InstallFailed)
		tt.says(r, "Not_A_Name")
		testenv.True(t, !r.TryAgain && r.Release != nil && r.Release.Status == "failed",
			"try again: %v, release %+v", r.TryAgain, r.Release)
		r = tt.do(req, "", helmjob.Aborted)
		tt.says(r, "failurePolicy is abort", "Not_A_Name")
		testenv.False(t, r.TryAgain || r.Release.Revision != 1, "try again: %v, release %+v", r.TryAgain, r.Release)
		req.Values = mend
		tt.do(req, helmjob.Recovered, "")
		tt.wantGreeting("second", "second")

		// The same of an upgrade. What was there stays.
		req.Values = []helmjob.Document{"second: Not_A_Name"}
		tt.do(req, "", helmjob.UpgradeFailed)
		tt.do(req, "", helmjob.Aborted)
		tt.wantGreeting("second", "second")
		req.Values = mend
		tt.do(req, helmjob.Recovered, "")
	})
	t.Run("retry", func(t *testing.T) {
		tt := newTester(t)
		req := tt.request(broken)
		req.FailurePolicy = helmjob.Retry
		for revision := 1; revision < 4; revision++ {
			if r := tt.do(req, "", helmjob.InstallFailed); !r.TryAgain || r.Release.Revision != revision {
				t.Errorf("try again: %v, release %+v", r.TryAgain, r.Release)
			}
		}
		req.Values = mend
		testenv.Equal(t, tt.do(req, helmjob.Recovered, "").Found, "failed", "found")
		tt.wantGreeting("second", "second")
	})
	t.Run("reinstall", func(t *testing.T) {
		tt := newTester(t)
		req := tt.request(broken)
		for range 2 {
			if r := tt.do(req, "", helmjob.InstallFailed); !r.TryAgain || r.Release.Revision != 1 {
				t.Errorf("try again: %v, release %+v", r.TryAgain, r.Release)
			}
		}
		req.Values = mend
		tt.do(req, helmjob.Recovered, "")
	})
}

// child has a request done by a process of its own.
func (t *tester) child(ctx context.Context, req *helmjob.Request) (*helmjob.Result, error) {
	t.Helper()
	program := testenv.Must(os.Executable())(t)
	return helmjob.Runner{Program: program}.Run(ctx, req)
}

// orphan starts a child, and returns its id and what makes it one whose parent is dead.
func (t *tester) orphan(req *helmjob.Request) (pid int, die func() error) {
	t.Helper()
	program := testenv.Must(os.Executable())(t)
	c := exec.Command(program)
	c.Args[0] = helmjob.Name
	in := testenv.Must(c.StdinPipe())(t)
	testenv.NoError(t, c.Start())
	testenv.NoError(t, json.NewEncoder(in).Encode(req))
	return c.Process.Pid, func() error { return errors.Join(in.Close(), c.Wait()) }
}

// stepsBack looks that a child goes before anything else when memory is short, and that it may not take any amount.
func (t *tester) stepsBack(pid int) {
	t.Helper()
	score, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid))
	testenv.False(t, err != nil || strings.TrimSpace(string(score)) != "1000", "the child's oom_score_adj is %q, %v", score, err)
	limits := testenv.Must(os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid)))(t)
	for line := range strings.Lines(string(limits)) {
		if f := strings.Fields(line); strings.HasPrefix(line, "Max data size") && f[3] != fmt.Sprint(maxData) {
			t.Errorf("the child's memory is not limited: %s", line)
		}
	}
}

// TestNextChildGoesOnAfterAKilledOne ends a child in a hook, as a kill and as the death of its parent, and lets the
// next one do it.
func TestNextChildGoesOnAfterAKilledOne(t *testing.T) {
	tt := newTester(t)
	hanging := tt.request(web("1.0.0").With("templates/hook.yaml", fmt.Sprintf(hook, "pre-install,pre-upgrade")))
	hanging.Timeout = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1) // the only value, so that the child need not be waited for
	for _, start := range []func() (end func() error){
		func() func() error {
			go func() {
				_, err := tt.child(ctx, hanging)
				done <- err
			}()
			return func() error { cancel(); return <-done }
		},
		func() func() error {
			pid, die := tt.orphan(hanging)
			return func() error {
				tt.stepsBack(pid) // it is in its hook
				return die()
			}
		},
	} {
		end := start()
		testenv.Eventually(t, 2*time.Minute, "a child in its hook", func() error {
			_, err := shared.client.BatchV1().Jobs(tt.ns).Get(context.Background(), "web-hook", metav1.GetOptions{})
			return err
		})
		tt.waitForRelease(common.StatusPendingInstall)
		if err := end(); err == nil {
			t.Fatal("the child was ended in its hook, and says that all is well")
		}
		background := metav1.DeletePropagationBackground
		testenv.NoError(t,
			shared.client.BatchV1().Jobs(tt.ns).Delete(t.Context(), "web-hook", metav1.DeleteOptions{PropagationPolicy: &background}))
	}
	r := testenv.Must(tt.child(t.Context(), tt.request(web("1.0.0"))))(t)
	t.Log(r.Message)
	testenv.Require(t, r.Action == helmjob.Recovered && r.Found == "pending-install", "the next child's result is %+v", r)
	tt.wantGreeting("web", "hello")
}

// TestNamespaceAndOwner looks at the two things that a request may allow.
func TestNamespaceAndOwner(t *testing.T) {
	tt := newTester(t)
	testenv.NoError(t, testenv.Err(shared.client.CoreV1().ConfigMaps(tt.ns).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "web"}}, metav1.CreateOptions{})))
	req := tt.request(web("1.0.0"))
	r := tt.do(req, "", helmjob.Conflict)
	tt.says(r, "takeOwnership", `ConfigMap "web"`)
	testenv.True(t, r.Release == nil, "there is a release: %+v", r.Release)
	req.TakeOwnership = true
	tt.do(req, helmjob.Installed, "")
	tt.wantGreeting("web", "hello")

	req = tt.request(web("1.0.0"))
	req.Namespace += "-2"
	if r := Do(t.Context(), Options{}, req); r.Reason != helmjob.InstallFailed || !strings.Contains(r.Message, req.Namespace) {
		t.Errorf("without the namespace: %+v", r)
	}
	req.CreateNamespace = true
	if r := Do(t.Context(), Options{}, req); r.Action != helmjob.Installed {
		text, _ := json.Marshal(r)
		t.Errorf("with it: %s", text)
	}
}
