// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"fmt"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// testPoliciesSeeAllOfTheirParameters: a policy whose parameters are a Pod and a Node sees all of them, also what the
// server's own informers leave out.
func testPoliciesSeeAllOfTheirParameters(t *testing.T, s *running) {
	c := client(t, s.admin())
	ctx := t.Context()
	ns := namespace(t, c)
	testenv.NoError(t, testenv.Err(c.CoreV1().ServiceAccounts(ns).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{})))
	pod := testenv.Must(c.CoreV1().Pods(ns).Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "param"}, Spec: corev1.PodSpec{
		ServiceAccountName: "default", Containers: []corev1.Container{{Name: "c", Image: "example.invalid/none"}},
	}}, metav1.CreateOptions{}))(t)
	pod.Status.PodIPs, pod.Status.PodIP = []corev1.PodIP{{IP: "10.42.0.9"}}, "10.42.0.9"
	testenv.Must(c.CoreV1().Pods(ns).UpdateStatus(ctx, pod, metav1.UpdateOptions{}))(t)
	node := testenv.Must(c.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "param"}}, metav1.CreateOptions{}))(t)
	node.Status.Images = []corev1.ContainerImage{{Names: []string{"example.invalid/boat"}}}
	testenv.Must(c.CoreV1().Nodes().UpdateStatus(ctx, node, metav1.UpdateOptions{}))(t)
	fail, deny := admissionv1.Fail, admissionv1.DenyAction
	policies, bindings := c.AdmissionregistrationV1().ValidatingAdmissionPolicies(), c.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings()
	for _, p := range []struct{ kind, namespace, expression string }{
		{"Pod", ns, "has(params.status.podIP) && params.status.podIP == object.data.podIP"},
		{"Node", "", "has(params.status.images) && params.status.images[0].names[0] == object.data.image"},
	} {
		name := "params-" + strings.ToLower(p.kind)
		if _, err := policies.Create(ctx, &admissionv1.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: admissionv1.ValidatingAdmissionPolicySpec{
			FailurePolicy: &fail, ParamKind: &admissionv1.ParamKind{APIVersion: "v1", Kind: p.kind},
			MatchConstraints: &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{{RuleWithOperations: admissionv1.RuleWithOperations{
				Operations: []admissionv1.OperationType{"CREATE"}, Rule: admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}},
			}}}},
			Validations: []admissionv1.Validation{{Expression: p.expression, Message: "the " + p.kind + " has something else"}},
		}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := bindings.Create(ctx, &admissionv1.ValidatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{
			PolicyName: name, ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny},
			ParamRef:       &admissionv1.ParamRef{Name: "param", Namespace: p.namespace, ParameterNotFoundAction: &deny},
			MatchResources: &admissionv1.MatchResources{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": ns}}},
		}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	try := func(data map[string]string) error {
		_, err := c.CoreV1().ConfigMaps(ns).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "boat-"}, Data: data}, metav1.CreateOptions{})
		return err
	}
	for _, wrong := range []map[string]string{{"podIP": "10.42.0.1", "image": "example.invalid/boat"}, {"podIP": "10.42.0.9", "image": "other"}} {
		eventually(t, "the policy", func() error {
			if err := try(wrong); err == nil {
				return fmt.Errorf("%v was let in", wrong)
			}
			return nil
		})
	}
	eventually(t, "what both say", func() error { return try(map[string]string{"podIP": "10.42.0.9", "image": "example.invalid/boat"}) })
}
