// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// waiting is how many of a namespace's pods never find a node.
const waiting = 15

func meta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}}
}

// namespace makes one, fills it, waits for what is to run in it, and deletes it.
func (c *churn) namespace(ctx context.Context, i, running int) error {
	name := fmt.Sprintf("%s-%d", c.prefix, i)
	ns := &corev1.Namespace{ObjectMeta: meta(name)}
	if _, err := c.client.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{}); err != nil {
		return err
	}
	err := until(ctx, "default ServiceAccount of "+name, func(ctx context.Context) (bool, error) {
		_, err := c.client.CoreV1().ServiceAccounts(name).Get(ctx, "default", metav1.GetOptions{})
		return err == nil, err
	})
	if err != nil {
		return err
	}
	stop, err := c.watching(ctx, c.client.CoreV1().Pods(name), c.client.CoreV1().ConfigMaps(name),
		c.client.CoreV1().Events(name), c.client.AppsV1().Deployments(name))
	if err != nil {
		return err
	}
	defer stop()
	if err := errors.Join(c.configuration(ctx, name), c.rights(ctx, name), c.workloads(ctx, name, running)); err != nil {
		return err
	}
	if err := c.settled(ctx, name, running); err != nil {
		return err
	}
	if err := c.client.CoreV1().Namespaces().Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
		return err
	}
	c.done.Namespaces.Add(1)
	return until(ctx, "deletion of namespace "+name, deleted(c.client.CoreV1().Namespaces().Get, name))
}

// configuration makes ConfigMaps and Secrets and changes some of them.
func (c *churn) configuration(ctx context.Context, ns string) error {
	for i := range 10 {
		m := &corev1.ConfigMap{ObjectMeta: meta(fmt.Sprintf("config-%d", i)), Data: map[string]string{"text": strings.Repeat("x", 500*(i+1))}}
		made, err := c.client.CoreV1().ConfigMaps(ns).Create(ctx, m, metav1.CreateOptions{})
		if err != nil {
			return err
		}
		made.Data["more"] = ns
		if _, err := c.client.CoreV1().ConfigMaps(ns).Update(ctx, made, metav1.UpdateOptions{}); err != nil {
			return err
		}
		s := &corev1.Secret{ObjectMeta: meta(fmt.Sprintf("secret-%d", i)), StringData: map[string]string{"key": ns}}
		if _, err := c.client.CoreV1().Secrets(ns).Create(ctx, s, metav1.CreateOptions{}); err != nil {
			return err
		}
		c.done.Objects.Add(2)
	}
	return nil
}

// rights makes an account with a role and a token of its own, and a quota.
func (c *churn) rights(ctx context.Context, ns string) error {
	create := metav1.CreateOptions{}
	_, err1 := c.client.CoreV1().ServiceAccounts(ns).Create(ctx, &corev1.ServiceAccount{ObjectMeta: meta("robot")}, create)
	_, err2 := c.client.RbacV1().Roles(ns).Create(ctx, &rbacv1.Role{
		ObjectMeta: meta("robot"),
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"pods", "configmaps"}, Verbs: []string{"get", "list"}}},
	}, create)
	_, err3 := c.client.RbacV1().RoleBindings(ns).Create(ctx, &rbacv1.RoleBinding{
		ObjectMeta: meta("robot"),
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "robot"},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: ns, Name: "robot"}},
	}, create)
	_, err4 := c.client.CoreV1().ResourceQuotas(ns).Create(ctx, &corev1.ResourceQuota{
		ObjectMeta: meta("quota"),
		Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{
			corev1.ResourcePods: resource.MustParse("1000"), "count/configmaps": resource.MustParse("1000"),
		}},
	}, create)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return err
	}
	c.done.Objects.Add(4)
	_, err := c.client.CoreV1().ServiceAccounts(ns).CreateToken(ctx, "robot", &authenticationv1.TokenRequest{}, create)
	return err
}

// workloads makes a Deployment and a StatefulSet whose pods fit no node, a Service before them, and a Job whose pods
// run.
func (c *churn) workloads(ctx context.Context, ns string, running int) error {
	labels := map[string]string{"app": "web"}
	template := corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: labels},
		Spec: corev1.PodSpec{
			NodeSelector: map[string]string{"churn.coracle.test/no-such": "node"},
			Containers: []corev1.Container{{
				Name: "box", Image: c.image, ImagePullPolicy: corev1.PullNever,
				EnvFrom: []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "config-0"}}}},
			}},
		},
	}
	create := metav1.CreateOptions{}
	_, err1 := c.client.AppsV1().Deployments(ns).Create(ctx, &appsv1.Deployment{
		ObjectMeta: meta("web"),
		Spec:       appsv1.DeploymentSpec{Replicas: ptr.To[int32](waiting - 1), Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: template},
	}, create)
	_, err2 := c.client.CoreV1().Services(ns).Create(ctx, &corev1.Service{
		ObjectMeta: meta("web"), Spec: corev1.ServiceSpec{Selector: labels, Ports: []corev1.ServicePort{{Port: 80}}},
	}, create)
	template.Labels = map[string]string{"app": "set"}
	_, err3 := c.client.AppsV1().StatefulSets(ns).Create(ctx, &appsv1.StatefulSet{
		ObjectMeta: meta("set"),
		Spec: appsv1.StatefulSetSpec{
			ServiceName: "web", Replicas: ptr.To[int32](3),
			Selector: &metav1.LabelSelector{MatchLabels: template.Labels}, Template: template,
		},
	}, create)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	c.done.Objects.Add(3)
	if running == 0 {
		return nil
	}
	spec := corev1.PodSpec{
		RestartPolicy: corev1.RestartPolicyNever, TerminationGracePeriodSeconds: ptr.To[int64](0),
		Containers: []corev1.Container{{Name: "box", Image: c.image, ImagePullPolicy: corev1.PullNever, Command: []string{"true"}}},
	}
	_, err := c.client.BatchV1().Jobs(ns).Create(ctx, &batchv1.Job{
		ObjectMeta: meta("job"),
		Spec: batchv1.JobSpec{
			Completions: ptr.To(int32(running)), Parallelism: ptr.To(int32(running)),
			Template: corev1.PodTemplateSpec{Spec: spec},
		},
	}, create)
	c.done.Objects.Add(1)
	return err
}

// settled waits until every pod was made and those that run have finished.
func (c *churn) settled(ctx context.Context, ns string, running int) error {
	return until(ctx, "pods of "+ns, func(ctx context.Context) (bool, error) {
		pods, err := c.client.CoreV1().Pods(ns).List(ctx, metav1.ListOptions{})
		if err != nil {
			return false, err
		}
		finished := 0
		for _, p := range pods.Items {
			if p.Status.Phase == corev1.PodFailed {
				return false, fmt.Errorf("pod %s failed: %s", p.Name, p.Status.Message)
			}
			if p.Status.Phase == corev1.PodSucceeded {
				finished++
			}
		}
		if finished < running || len(pods.Items) < waiting+running {
			return false, nil
		}
		c.done.Pods.Add(int64(len(pods.Items)))
		c.done.PodsRun.Add(int64(finished))
		return true, nil
	})
}
