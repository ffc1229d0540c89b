// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// withheld is in everything of the test's pod that is not the network's business.
const withheld = "withheld"

func secretivePod() *corev1.Pod {
	container := func(name string) corev1.Container {
		return corev1.Container{
			Name: name + withheld, Image: withheld, Command: []string{withheld}, Args: []string{withheld}, WorkingDir: "/" + withheld,
			Env:          []corev1.EnvVar{{Name: withheld, Value: withheld}},
			VolumeMounts: []corev1.VolumeMount{{Name: withheld, MountPath: "/" + withheld}},
			Ports:        []corev1.ContainerPort{{Name: name + "-port", ContainerPort: 8080, HostPort: 4711}, {ContainerPort: 8081}},
		}
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: "p", Labels: map[string]string{"app": "web"}, Annotations: map[string]string{withheld: withheld}, Finalizers: []string{"example.com/" + withheld},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: withheld, UID: withheld}},
		},
		Spec: corev1.PodSpec{
			NodeName: "n1", HostNetwork: false, Hostname: withheld, ServiceAccountName: "default",
			InitContainers: []corev1.Container{container("init")}, Containers: []corev1.Container{container("main")},
			Volumes:     []corev1.Volume{{Name: withheld, VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: withheld}}}}},
			HostAliases: []corev1.HostAlias{{IP: "192.0.2.4", Hostnames: []string{withheld}}},
		},
	}
}

// TestNetworkReadsNoWholePods: as the network identity nothing but names, labels, addresses and ports of pods arrives,
// whatever the request, with and without watch caches.
func TestNetworkReadsNoWholePods(t *testing.T) {
	for _, cached := range []bool{false, true} {
		t.Run(fmt.Sprintf("cached=%t", cached), func(t *testing.T) {
			f := newFixture(t)
			o := f.options(t)
			o.WatchCache = cached
			s := f.start(t, o)
			c := client(t, s.admin())
			ns := namespace(t, c)
			made := makeSecretivePod(t, c, ns)
			asNetwork := rest.CopyConfig(s.admin())
			asNetwork.Impersonate = rest.ImpersonationConfig{UserName: pki.NetworkUser}
			checkServedPod(t, client(t, asNetwork), ns, made)
			checkEncodings(t, asNetwork, ns)
		})
	}
}

func makeSecretivePod(t *testing.T, c kubernetes.Interface, ns string) *corev1.Pod {
	t.Helper()
	ctx := t.Context()
	_, err := c.RbacV1().ClusterRoles().Create(ctx, &rbacv1.ClusterRole{ObjectMeta: metav1.ObjectMeta{Name: "network"},
		Rules: []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"get", "list", "watch"}}}}, metav1.CreateOptions{})
	testenv.NoError(t, err)
	testenv.Must(c.RbacV1().ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "network"},
		RoleRef:  rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "network"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: pki.NetworkUser}}}, metav1.CreateOptions{}))(t)
	testenv.NoError(t, testenv.Err(c.CoreV1().ServiceAccounts(ns).Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{})))
	var made *corev1.Pod
	eventually(t, "the pod is admitted", func() error {
		made, err = c.CoreV1().Pods(ns).Create(ctx, secretivePod(), metav1.CreateOptions{FieldManager: withheld})
		return err
	})
	made.Status = corev1.PodStatus{
		Phase: corev1.PodRunning, Message: withheld, Reason: withheld, PodIP: "10.42.0.7", PodIPs: []corev1.PodIP{{IP: "10.42.0.7"}}, HostIP: "192.0.2.77", HostIPs: []corev1.HostIP{{IP: "192.0.2.77"}},
		ContainerStatuses: []corev1.ContainerStatus{{Name: "main" + withheld, Image: withheld, ImageID: withheld}},
	}
	made, err = c.CoreV1().Pods(ns).UpdateStatus(ctx, made, metav1.UpdateOptions{})
	testenv.NoError(t, err)
	return made
}

// checkServedPod wants exactly these fields by get and list.
func checkServedPod(t *testing.T, c kubernetes.Interface, ns string, made *corev1.Pod) {
	t.Helper()
	want := corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "p", UID: made.UID, ResourceVersion: made.ResourceVersion, Labels: made.Labels, CreationTimestamp: made.CreationTimestamp},
		Spec: corev1.PodSpec{
			NodeName:       "n1",
			InitContainers: []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "init-port", ContainerPort: 8080, Protocol: corev1.ProtocolTCP}}}},
			Containers:     []corev1.Container{{Ports: []corev1.ContainerPort{{Name: "main-port", ContainerPort: 8080, Protocol: corev1.ProtocolTCP}}}},
		},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.42.0.7", PodIPs: []corev1.PodIP{{IP: "10.42.0.7"}}},
	}
	same := func(what string, got corev1.Pod) {
		got.TypeMeta = metav1.TypeMeta{}
		if !reflect.DeepEqual(got, want) {
			have, _ := json.Marshal(got)
			t.Errorf("%s: got %s", what, have)
		}
	}
	got := testenv.Must(c.CoreV1().Pods(ns).Get(t.Context(), "p", metav1.GetOptions{}))(t)
	same("get", *got)
	list, err := c.CoreV1().Pods(metav1.NamespaceAll).List(t.Context(), metav1.ListOptions{LabelSelector: "app=web"})
	testenv.Require(t, err == nil && len(list.Items) == 1, "%v %v", list, err)
	same("list", list.Items[0])
	w := testenv.Must(c.CoreV1().Pods(ns).Watch(t.Context(), metav1.ListOptions{}))(t)
	defer w.Stop()
	e := <-w.ResultChan()
	if pod, ok := e.Object.(*corev1.Pod); ok {
		same("watch", *pod)
	} else {
		t.Errorf("watch: %+v", e)
	}
}

// checkEncodings looks into the bytes of answers.
func checkEncodings(t *testing.T, config *rest.Config, ns string) {
	t.Helper()
	h := testenv.Must(rest.HTTPClientFor(config))(t)
	answers := 0
	for _, accept := range []string{
		"application/json", "application/yaml", "application/vnd.kubernetes.protobuf",
		"application/json;as=Table;v=v1;g=meta.k8s.io", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io",
	} {
		for _, path := range []string{
			"/api/v1/namespaces/" + ns + "/pods/p", "/api/v1/pods?labelSelector=app%3Dweb", "/api/v1/namespaces/" + ns + "/pods?watch=1&timeoutSeconds=1",
			"/api/v1/pods?watch=1&timeoutSeconds=1&resourceVersion=0", "/api/v1/watch/namespaces/" + ns + "/pods/p?timeoutSeconds=1",
			"/api/v1/namespaces/" + ns + "/pods?watch=1&timeoutSeconds=1&sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan",
		} {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			r := testenv.Must(http.NewRequestWithContext(ctx, http.MethodGet, config.Host+path, nil))(t)
			r.Header.Set("Accept", accept)
			answer := testenv.Must(h.Do(r))(t)
			body, err := io.ReadAll(answer.Body)
			answer.Body.Close()
			if answer.StatusCode != http.StatusOK {
				continue // no such form of this
			}
			testenv.Check(t, err, "%s as %s", path, accept)
			if len(body) > 0 {
				answers++
			}
			if text := string(body); strings.Contains(text, withheld) || strings.Contains(text, "192.0.2.77") {
				t.Errorf("%s as %s has what is not the network's: %s", path, accept, text)
			}
		}
	}
	testenv.True(t, answers >= 20, "%d answers only: the requests are not what they are meant to be", answers)
}
