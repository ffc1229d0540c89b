// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/coracle-k8s/coracle/internal/config"
)

// fakeAPI answers the few requests that commands make: one node, one pod, Secrets that are kept, and, with
// FAKE_NOT_YET, objects that coracle does nothing with.
func fakeAPI() *httptest.Server {
	var mu sync.Mutex
	secrets := map[string]corev1.Secret{}
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, code int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(v) // the client complains
	}
	kind := func(k string) metav1.TypeMeta { return metav1.TypeMeta{Kind: k, APIVersion: "v1"} }
	mux.HandleFunc("GET /api/v1/nodes", func(w http.ResponseWriter, _ *http.Request) {
		node := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "board1"}, Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}}}
		list := corev1.NodeList{TypeMeta: kind("NodeList"), Items: []corev1.Node{node}}
		if os.Getenv("FAKE_NOT_YET") != "" {
			list.Items = append(list.Items, node)
		}
		answer(w, 200, list)
	})
	// board9 is gone as soon as it is to leave.
	left := false
	mux.HandleFunc("PATCH /api/v1/nodes/board9", func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		left = true
		answer(w, 200, corev1.Node{TypeMeta: kind("Node"), ObjectMeta: metav1.ObjectMeta{Name: "board9", UID: "u9"}})
	})
	notFound := metav1.Status{TypeMeta: kind("Status"), Status: "Failure", Reason: metav1.StatusReasonNotFound, Code: 404}
	mux.HandleFunc("GET /api/v1/nodes/board9", func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if left {
			answer(w, 404, notFound)
			return
		}
		answer(w, 200, corev1.Node{TypeMeta: kind("Node"), ObjectMeta: metav1.ObjectMeta{Name: "board9", UID: "u9"}})
	})
	mux.HandleFunc("PATCH /api/v1/nodes/{name}", func(w http.ResponseWriter, _ *http.Request) { answer(w, 404, notFound) })
	mux.HandleFunc("GET /api/v1/pods", func(w http.ResponseWriter, _ *http.Request) {
		pod := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Status: corev1.PodStatus{Phase: corev1.PodSucceeded}}
		if os.Getenv("FAKE_CRASH") != "" {
			pod.Status = corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "c", RestartCount: 3, State: waiting("CrashLoopBackOff", "")}}}
		}
		if planted := os.Getenv("FAKE_PLANTED"); planted != "" {
			pod.Annotations = map[string]string{"last-applied": planted}
			pod.Spec.Containers = []corev1.Container{{Name: "c", Args: []string{planted}, Command: []string{planted}, Env: []corev1.EnvVar{{Name: "A", Value: planted}}}}
			pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "c", LastTerminationState: corev1.ContainerState{
				Terminated: &corev1.ContainerStateTerminated{ExitCode: 1, Reason: "Error", Message: planted}}}}
		}
		attempt := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "backup-1", OwnerReferences: []metav1.OwnerReference{
			{APIVersion: "batch/v1", Kind: "Job", Name: "backup", Controller: new(true)}}}, Status: corev1.PodStatus{Phase: corev1.PodFailed}}
		answer(w, 200, corev1.PodList{TypeMeta: kind("PodList"), Items: []corev1.Pod{pod, attempt}})
	})
	mux.HandleFunc("GET /api/v1/namespaces/default/events", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, 200, corev1.EventList{TypeMeta: kind("EventList")})
	})
	mux.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) { answer(w, 200, map[string]string{"gitVersion": "v1"}) })
	mux.HandleFunc("GET /api/v1/configmaps", func(w http.ResponseWriter, _ *http.Request) {
		m := corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web"}, Data: map[string]string{"a": os.Getenv("FAKE_PLANTED"), "b": ""}}
		answer(w, 200, corev1.ConfigMapList{TypeMeta: kind("ConfigMapList"), Items: []corev1.ConfigMap{m}})
	})
	mux.HandleFunc("GET /api/v1/services", func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.Header.Get("Accept"), "as=Table") {
			object := metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Annotations: map[string]string{"a": os.Getenv("FAKE_PLANTED")}}}
			answer(w, 200, metav1.Table{ColumnDefinitions: []metav1.TableColumnDefinition{{Name: "Name"}, {Name: "Status"}},
				Rows: []metav1.TableRow{{Cells: []any{"web", "Pending"}, Object: runtime.RawExtension{Object: &object}}}})
			return
		}
		list := corev1.ServiceList{TypeMeta: kind("ServiceList")}
		if os.Getenv("FAKE_NOT_YET") != "" && r.URL.Query().Get("fieldSelector") == "spec.type=LoadBalancer" {
			served := corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "served"}}
			served.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "192.0.2.9"}}
			list.Items = []corev1.Service{served, {ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}}}
		}
		answer(w, 200, list)
	})
	const path = "/api/v1/namespaces/kube-system/secrets"
	mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		var s corev1.Secret
		if err := json.NewDecoder(r.Body).Decode(&s); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.TypeMeta = kind("Secret")
		secrets[s.Name] = s
		answer(w, 201, s)
	})
	mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		list := corev1.SecretList{TypeMeta: kind("SecretList")}
		for _, s := range secrets {
			list.Items = append(list.Items, s)
		}
		answer(w, 200, list)
	})
	mux.HandleFunc("DELETE "+path+"/{name}", func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if _, ok := secrets[r.PathValue("name")]; !ok {
			answer(w, 404, notFound)
			return
		}
		delete(secrets, r.PathValue("name"))
		answer(w, 200, metav1.Status{TypeMeta: kind("Status"), Status: "Success"})
	})
	return httptest.NewServer(mux)
}

// writeAdmin writes what a server leaves for commands: a kubeconfig and tokens.
func writeAdmin(p config.Paths, url string) error {
	c := api.NewConfig()
	c.Clusters["default"] = &api.Cluster{Server: url}
	c.AuthInfos["default"] = &api.AuthInfo{Token: "secret"}
	c.Contexts["default"] = &api.Context{Cluster: "default", AuthInfo: "default"}
	c.CurrentContext = "default"
	if err := os.MkdirAll(filepath.Dir(p.AdminKubeconfig), 0o700); err != nil {
		return err
	}
	const prefix = "CRC10123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef::"
	for path, text := range map[string]string{p.TokenFile: prefix + "server:s3cret\n", p.AgentTokenFile: prefix + "agent:ag3nt\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return err
		}
	}
	return clientcmd.WriteToFile(*c, p.AdminKubeconfig)
}
