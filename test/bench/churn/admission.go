// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/utils/ptr"
)

// admission makes a policy with its binding, a webhook that concerns no namespace, and an API service that no server
// answers for, uses what it can, and deletes them.
func (c *churn) admission(ctx context.Context, i int) error {
	name := fmt.Sprintf("%s-admission-%d.coracle.test", c.prefix, i)
	group := fmt.Sprintf("s%d.%s.coracle.test", i, c.prefix)
	nowhere := &metav1.LabelSelector{MatchLabels: map[string]string{"churn.coracle.test/no-such": "namespace"}}
	rules := []admissionv1.RuleWithOperations{{
		Operations: []admissionv1.OperationType{admissionv1.Create},
		Rule:       admissionv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}},
	}}
	create, remove := metav1.CreateOptions{}, metav1.DeleteOptions{}
	a := c.client.AdmissionregistrationV1()
	_, err1 := a.ValidatingAdmissionPolicies().Create(ctx, &admissionv1.ValidatingAdmissionPolicy{
		ObjectMeta: meta(name),
		Spec: admissionv1.ValidatingAdmissionPolicySpec{
			MatchConstraints: &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{{RuleWithOperations: rules[0]}}},
			Validations:      []admissionv1.Validation{{Expression: "!has(object.data) || object.data.all(k, size(k) < 100)"}},
		},
	}, create)
	_, err2 := a.ValidatingAdmissionPolicyBindings().Create(ctx, &admissionv1.ValidatingAdmissionPolicyBinding{
		ObjectMeta: meta(name),
		Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{
			PolicyName: name, ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny},
		},
	}, create)
	_, err3 := a.ValidatingWebhookConfigurations().Create(ctx, &admissionv1.ValidatingWebhookConfiguration{
		ObjectMeta: meta(name),
		Webhooks: []admissionv1.ValidatingWebhook{{
			Name: name, Rules: rules, NamespaceSelector: nowhere,
			ClientConfig:  admissionv1.WebhookClientConfig{Service: &admissionv1.ServiceReference{Namespace: "default", Name: "no-such"}},
			FailurePolicy: ptr.To(admissionv1.Ignore), SideEffects: ptr.To(admissionv1.SideEffectClassNone), AdmissionReviewVersions: []string{"v1"},
		}},
	}, create)
	_, err4 := c.aggregator.ApiregistrationV1().APIServices().Create(ctx, &apiregistrationv1.APIService{
		ObjectMeta: meta("v1." + group),
		Spec: apiregistrationv1.APIServiceSpec{
			Group: group, Version: "v1", GroupPriorityMinimum: 100, VersionPriority: 10, InsecureSkipTLSVerify: true,
			Service: &apiregistrationv1.ServiceReference{Namespace: "default", Name: "no-such"},
		},
	}, create)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return err
	}
	// The status controller type-checks the policy, which takes some of what admission keeps.
	err := until(ctx, "status of policy "+name, func(ctx context.Context) (bool, error) {
		p, err := a.ValidatingAdmissionPolicies().Get(ctx, name, metav1.GetOptions{})
		return err == nil && p.Status.ObservedGeneration > 0, err
	})
	if err != nil {
		return err
	}
	c.done.Objects.Add(4)
	return errors.Join(
		c.aggregator.ApiregistrationV1().APIServices().Delete(ctx, "v1."+group, remove),
		a.ValidatingWebhookConfigurations().Delete(ctx, name, remove),
		a.ValidatingAdmissionPolicyBindings().Delete(ctx, name, remove),
		a.ValidatingAdmissionPolicies().Delete(ctx, name, remove))
}
