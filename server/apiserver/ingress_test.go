// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/controllers/gateway"
	"github.com/coracle-k8s/coracle/ingress/compile"
	compiled "github.com/coracle-k8s/coracle/ingress/gateway"
	"github.com/coracle-k8s/coracle/ingress/gatewayapi"
	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testca"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestNamedObjectsReachTheTable changes Secrets and ConfigMaps that routes name, each when its last change has arrived
// at a node: users, authorities of clients, headers, certificates in Secrets of another type. The routes are older than
// what they name. All changes together take less than patience, so none waits for periodic reads.
func TestNamedObjectsReachTheTable(t *testing.T) {
	f := newFixture(t)
	o := f.options(t)
	o.GatewayUse = used{}
	s := f.start(t, o)
	allow(t, s, "system:node:one")
	admin, api := client(t, s.admin()), testenv.Must(gatewayapi.New(s.admin()))(t)
	testenv.NoError(t, gateway.Define(t.Context(), testenv.Must(dynamic.NewForConfig(s.admin()))(t), api, time.Now()))
	ns := namespace(t, admin)
	makeRoutes(t, admin, ns, pems(t))
	n := followTable(t, client(t, s.withLeaf(f.leaf.node)))
	n.wait(t, "the routes", func(text string) bool { return strings.Contains(text, table.HostKey(table.SiteIngress, "h.example")) })
	first, second := pems(t), pems(t)
	authority := func(of map[string][]byte) map[string][]byte {
		return map[string][]byte{"ca.crt": of[corev1.TLSCertKey]}
	}
	headers := func(value string) map[string][]byte { return map[string][]byte{"X-Test": []byte(value)} }
	for _, c := range []struct {
		name      string
		configMap bool
		versions  [2]map[string][]byte
	}{
		{"users", false, [2]map[string][]byte{{"auth": []byte("a:{SHA}Et6pb+wgWTVmq3VpLJlJWWgzrck=")}, {"auth": []byte("a:{SHA}2PRZAyDhNDqRW2OUFwZQqPNdaSY=")}}},
		{"clients", false, [2]map[string][]byte{authority(first), authority(second)}},
		{"opaque", false, [2]map[string][]byte{first, second}},
		{"headers", true, [2]map[string][]byte{headers("the first"), headers("the second")}},
		{"front", false, [2]map[string][]byte{first, second}},
		{"authorities", true, [2]map[string][]byte{authority(first), authority(second)}},
	} {
		began := time.Now()
		for i := range 5 {
			write(t, admin, ns, c.name, c.configMap, c.versions[i%2])
			n.wait(t, fmt.Sprintf("version %d of %s", i, c.name), func(text string) bool {
				return strings.Contains(text, mark(c.versions[i%2])) && !strings.Contains(text, mark(c.versions[(i+1)%2]))
			})
		}
		write(t, admin, ns, c.name, c.configMap, nil)
		n.wait(t, c.name+" is gone", func(text string) bool { return !strings.Contains(text, mark(c.versions[0])) })
		t.Logf("%s: six changes in %s", c.name, time.Since(began))
	}
}

// used is a gatewayapi.Use.
type used struct{}

func (used) Used() bool               { return true }
func (used) Changed() <-chan struct{} { return nil }

// makeRoutes makes an Ingress and two Gateways that name Secrets and ConfigMaps which do not exist. The Gateway with
// authorities of clients has a certificate that stays.
func makeRoutes(t *testing.T, admin kubernetes.Interface, ns string, stays map[string][]byte) {
	t.Helper()
	nginx := "nginx.ingress.kubernetes.io/"
	ing := &networkingv1.Ingress{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Annotations: map[string]string{
			nginx + "auth-type": "basic", nginx + "auth-secret": "users", nginx + "auth-tls-secret": ns + "/clients", nginx + "custom-headers": ns + "/headers",
		}},
		Spec: networkingv1.IngressSpec{
			IngressClassName: ptr.To(compile.Class), TLS: []networkingv1.IngressTLS{{SecretName: "opaque"}},
			Rules: []networkingv1.IngressRule{{Host: "h.example", IngressRuleValue: networkingv1.IngressRuleValue{HTTP: &networkingv1.HTTPIngressRuleValue{
				Paths: []networkingv1.HTTPIngressPath{{Path: "/", PathType: ptr.To(networkingv1.PathTypePrefix), Backend: networkingv1.IngressBackend{
					Service: &networkingv1.IngressServiceBackend{Name: "web", Port: networkingv1.ServiceBackendPort{Number: 80}},
				}}},
			}}}},
		},
	}
	testenv.Must(admin.NetworkingV1().Ingresses(ns).Create(t.Context(), ing, metav1.CreateOptions{}))(t)
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "stays"}, Type: corev1.SecretTypeTLS, Data: stays}
	testenv.Must(admin.CoreV1().Secrets(ns).Create(t.Context(), secret, metav1.CreateOptions{}))(t)
	ports := map[string]string{}
	for i, g := range []struct{ name, secret, more string }{
		{"front", "front", ""},
		{"checked", "stays", `,"tls":{"frontend":{"default":{"validation":{"caCertificateRefs":[{"group":"","kind":"ConfigMap","name":"authorities"}]}}}}`},
	} {
		text := fmt.Sprintf(`{"apiVersion":"gateway.networking.k8s.io/v1","kind":"Gateway","metadata":{"name":%q},"spec":{"gatewayClassName":"coracle",
			"listeners":[{"name":"https","port":443,"protocol":"HTTPS","hostname":"g.example","tls":{"certificateRefs":[{"name":%q}]}}]%s}}`, g.name, g.secret, g.more)
		testenv.NoError(t, admin.CoreV1().RESTClient().Post().AbsPath("/apis/gateway.networking.k8s.io/v1/namespaces", ns, "gateways").
			SetHeader("Content-Type", runtime.ContentTypeJSON).Body([]byte(text)).Do(t.Context()).Error())
		service := &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: compiled.ServiceName(g.name), Labels: map[string]string{compiled.ServiceLabel: compiled.LabelValue(g.name)}},
			Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 443}}},
		}
		testenv.Must(admin.CoreV1().Services(ns).Create(t.Context(), service, metav1.CreateOptions{}))(t)
		ports[fmt.Sprint(table.FirstGatewayPort+i)] = table.GatewaySite(ns, g.name, 443)
	}
	testenv.Must(admin.CoreV1().ConfigMaps(metav1.NamespaceSystem).Create(t.Context(),
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: gatewayapi.PortsName}, Data: ports}, metav1.CreateOptions{}))(t)
}

// pems is a certificate with its key, as a Secret has them.
func pems(t *testing.T) map[string][]byte {
	t.Helper()
	ca := testenv.Must(testca.New(t.TempDir()))(t)
	files := testenv.Must(ca.Issue("made", "h.example", "g.example"))(t)
	return map[string][]byte{
		corev1.TLSCertKey: testenv.Must(os.ReadFile(files.Cert))(t), corev1.TLSPrivateKeyKey: testenv.Must(os.ReadFile(files.Key))(t),
	}
}

// mark is a text by which an object's data is known in a table.
func mark(data map[string][]byte) string {
	for _, key := range []string{corev1.TLSCertKey, "ca.crt"} {
		if text, ok := data[key]; ok {
			lines := strings.Split(string(text), "\n")
			return lines[len(lines)-4] // of the signature, which no other certificate has
		}
	}
	return strings.TrimPrefix(string(data["auth"])+string(data["X-Test"]), "a:")
}

// write makes or changes a Secret or ConfigMap, or deletes it if data is nil.
func write(t *testing.T, admin kubernetes.Interface, ns, name string, configMap bool, data map[string][]byte) {
	t.Helper()
	meta := metav1.ObjectMeta{Name: name}
	var err error
	switch secrets, maps := admin.CoreV1().Secrets(ns), admin.CoreV1().ConfigMaps(ns); {
	case data == nil && configMap:
		err = maps.Delete(t.Context(), name, metav1.DeleteOptions{})
	case data == nil:
		err = secrets.Delete(t.Context(), name, metav1.DeleteOptions{})
	case configMap:
		o := &corev1.ConfigMap{ObjectMeta: meta, Data: map[string]string{}}
		for key, value := range data {
			o.Data[key] = string(value)
		}
		if _, err = maps.Update(t.Context(), o, metav1.UpdateOptions{}); apierrors.IsNotFound(err) {
			_, err = maps.Create(t.Context(), o, metav1.CreateOptions{})
		}
	default:
		o := &corev1.Secret{ObjectMeta: meta, Data: data}
		if _, err = secrets.Update(t.Context(), o, metav1.UpdateOptions{}); apierrors.IsNotFound(err) {
			_, err = secrets.Create(t.Context(), o, metav1.CreateOptions{})
		}
	}
	testenv.NoError(t, err)
}

// nodeTable is the table as a node has it.
type nodeTable struct {
	deadline time.Time // of all waits together

	mu  sync.Mutex
	now table.Sections
}

// followTable follows the table until the end of the test.
func followTable(t *testing.T, node kubernetes.Interface) *nodeTable {
	t.Helper()
	n := &nodeTable{deadline: time.Now().Add(patience), now: table.Sections{}}
	ctx, cancel := context.WithCancel(context.Background())
	var reading sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		reading.Wait()
	})
	eventually(t, "the right to a stream", func() error {
		stream, err := node.CoreV1().RESTClient().Get().AbsPath(table.Path).Stream(ctx)
		if err != nil {
			return err
		}
		reading.Go(func() {
			defer stream.Close()
			for in := json.NewDecoder(stream); ; {
				var c table.Change
				if in.Decode(&c) != nil {
					return
				}
				if !c.Commit {
					n.mu.Lock()
					n.now.Apply(c)
					n.mu.Unlock()
				}
			}
		})
		return nil
	})
	return n
}

// wait waits until the table, as text with its keys, has what is wanted.
func (n *nodeTable) wait(t *testing.T, what string, has func(text string) bool) {
	t.Helper()
	testenv.Until(t, time.Until(n.deadline), what, func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		text, err := json.Marshal(n.now)
		return err == nil && has(string(text))
	})
}
