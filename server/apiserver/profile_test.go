// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/apis/audit"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/apiserver/pkg/audit/policy"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	kubeoptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestCISProfileAuditsAndRefuses starts a server with the profile: who did something is in the log, and pods, Services
// and too many events are refused as it says.
func TestCISProfileAuditsAndRefuses(t *testing.T) {
	lowerEventLimits(t)
	f := newFixture(t)
	o := f.options(t)
	o.Profile, o.AuditLog = ProfileCIS, filepath.Join(f.dir, "logs", "audit.log")
	s := f.start(t, o)
	c := client(t, s.admin())
	ns := namespace(t, c)
	pods := func(ns string) error {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{HostPID: true, Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
		_, err := c.CoreV1().Pods(ns).Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err
	}
	for _, ns := range []string{ns, "kube-system"} {
		if _, err := c.CoreV1().ServiceAccounts(ns).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
	}
	eventually(t, "a pod of the host's in a user's namespace is refused for what it is", func() error {
		if err := pods(ns); err == nil || !strings.Contains(err.Error(), `violates PodSecurity "restricted:latest"`) {
			return fmt.Errorf("it says %w", err)
		}
		return nil
	})
	testenv.Check(t, pods("kube-system"), "a pod of the host's in kube-system")
	_, err := c.CoreV1().Services(ns).Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "s"},
		Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 80}}, ExternalIPs: []string{"198.51.100.1"}}}, metav1.CreateOptions{})
	testenv.True(t, apierrors.IsForbidden(err), "a Service with external IPs: %v", err)
	tooManyEvents(t, c.CoreV1().Events(ns), ns)
	testenv.Contains(t, string(testenv.Must(c.Discovery().RESTClient().Get().AbsPath("/flagz").Do(t.Context()).Raw())(t)), "audit-log-maxage", "/flagz says")
	s.stop()
	fi, err := os.Stat(o.AuditLog)
	testenv.Require(t, err == nil && fi.Mode().Perm() == 0o600, "the audit log: %v, %v", fi, err)
	data := testenv.Must(os.ReadFile(o.AuditLog))(t)
	refused := false
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		var e auditv1.Event
		testenv.NoError(t, json.Unmarshal(lines.Bytes(), &e), "%s", lines.Text())
		if e.ObjectRef == nil { // a path, such as /flagz
			continue
		}
		refused = refused || e.User.Username == "system:admin" && e.Verb == "create" && e.ObjectRef.Resource == "pods" && e.ResponseStatus.Code == 403
		if e.ObjectRef.Resource == "leases" || e.User.Username == "system:apiserver" && (e.Verb == "watch" || e.Verb == "list" || e.Verb == "get") || e.RequestObject != nil {
			t.Errorf("this needs no line: %s", lines.Text())
		}
	}
	testenv.True(t, refused, "the refused pod is not in the log:\n%s", data)
}

// lowerEventLimits has the profile's limits of events be ones that the slowest machine reaches.
func lowerEventLimits(t *testing.T) {
	t.Helper()
	profile := cisAdmission
	t.Cleanup(func() { cisAdmission = profile })
	cisAdmission = bytes.ReplaceAll(profile, []byte("qps: 50, burst: 200"), []byte("qps: 1, burst: 10"))
	testenv.False(t, bytes.Equal(cisAdmission, profile), "the profile has other limits of events:\n%s", profile)
}

// tooManyEvents creates events until one is refused for their number.
func tooManyEvents(t *testing.T, events typedcorev1.EventInterface, ns string) {
	t.Helper()
	for n := range 100 {
		e := &corev1.Event{ObjectMeta: metav1.ObjectMeta{GenerateName: "e-"}, InvolvedObject: corev1.ObjectReference{Namespace: ns}}
		_, err := events.Create(t.Context(), e, metav1.CreateOptions{})
		if err != nil {
			testenv.True(t, n >= 10 && apierrors.IsTooManyRequests(err) && strings.Contains(err.Error(), "limit reached on type"),
				"after %d events: %v", n, err)
			t.Logf("after %d events: %v", n, err)
			return
		}
	}
	t.Error("none of 100 events is refused")
}

// TestOperatorsArgumentsOverrideProfile: the operator's own arguments count.
func TestOperatorsArgumentsOverrideProfile(t *testing.T) {
	for _, test := range []struct {
		own         string
		wantPlugins string
		ok          func(*kubeoptions.ServerRunOptions) bool
	}{
		{"audit-log-maxage=5", "DenyServiceExternalIPs,EventRateLimit", func(s *kubeoptions.ServerRunOptions) bool { return s.Audit.LogOptions.MaxAge == 5 }},
		{"audit_policy_file=/etc/own.yaml", "DenyServiceExternalIPs,EventRateLimit", func(s *kubeoptions.ServerRunOptions) bool { return s.Audit.PolicyFile == "/etc/own.yaml" }},
		{"enable-admission-plugins=AlwaysPullImages", "DenyServiceExternalIPs,EventRateLimit,AlwaysPullImages", nil},
		{"disable-admission-plugins=EventRateLimit,PodSecurity", "DenyServiceExternalIPs", nil},
		{"disable-admission-plugins=DenyServiceExternalIPs", "EventRateLimit", nil},
		{"admission-control-config-file=/etc/own.yaml", "DenyServiceExternalIPs", func(s *kubeoptions.ServerRunOptions) bool {
			return s.Admission.GenericAdmission.ConfigFile == "/etc/own.yaml"
		}},
	} {
		o := Options{ConfigDir: t.TempDir(), AuditLog: "/audit.log", APIServer: config.APIServer{Profile: ProfileCIS, APIServerArgs: []string{test.own}}}
		args := testenv.Must(profileArgs(o))(t)
		s := kubeoptions.NewServerRunOptions()
		testenv.NoError(t, applyExtraArgs(s, append(args, o.APIServerArgs...)), "%s", test.own)
		testenv.Equal(t, strings.Join(s.Admission.GenericAdmission.EnablePlugins, ","), test.wantPlugins, "%s: plugins", test.own)
		testenv.False(t, test.ok != nil && !test.ok(s), "%s has no effect", test.own)
	}
	if args, err := profileArgs(Options{ConfigDir: t.TempDir()}); err != nil || len(args) > 0 {
		t.Errorf("without a profile: %v, %v", args, err)
	}
}

// TestAuditLogHasReadersOfSecrets: the audit log has who read Secrets, and not what the control plane and nodes read
// else.
func TestAuditLogHasReadersOfSecrets(t *testing.T) {
	p := testenv.Must(policy.LoadPolicyFromBytes(cisAudit))(t)
	rules := policy.NewPolicyRuleEvaluator(p)
	const node, controller = "system:nodes", "system:serviceaccounts:kube-system"
	for _, c := range []struct {
		user, group, verb, resource string
		want                        audit.Level
	}{
		{"system:node:n", node, "watch", "secrets", audit.LevelMetadata}, // how a kubelet reads them
		{"system:node:n", node, "get", "secrets", audit.LevelMetadata},
		{"system:node:n", node, "watch", "configmaps", audit.LevelNone},
		{"system:node:n", node, "patch", "nodes", audit.LevelMetadata},
		{"system:serviceaccount:kube-system:add-on", controller, "list", "secrets", audit.LevelMetadata},
		{"system:serviceaccount:kube-system:add-on", controller, "list", "pods", audit.LevelNone},
		{"system:serviceaccount:kube-system:add-on", controller, "get", "pods/exec", audit.LevelMetadata}, // as kubectl opens its WebSocket
		{"system:serviceaccount:kube-system:add-on", controller, "get", "nodes/proxy", audit.LevelMetadata},
		{"system:kube-controller-manager", "", "watch", "secrets", audit.LevelMetadata},
		{"system:apiserver", "", "watch", "secrets", audit.LevelNone},
		{"ada", "", "get", "pods", audit.LevelMetadata},
		{"ada", "", "update", "leases", audit.LevelNone},
	} {
		a := authorizer.AttributesRecord{User: &user.DefaultInfo{Name: c.user, Groups: []string{c.group}}, Verb: c.verb, ResourceRequest: true}
		a.Resource, a.Subresource, _ = strings.Cut(c.resource, "/")
		if c.resource == "leases" {
			a.APIGroup = "coordination.k8s.io"
		}
		testenv.Equal(t, rules.EvaluatePolicyRule(a).Level, c.want, "%s, %s of %s: level", c.user, c.verb, c.resource)
	}
}
