// SPDX-License-Identifier: Apache-2.0

package controllers_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// refusals counts the requests that the API server has answered with 403.
func refusals(t *testing.T) float64 {
	t.Helper()
	return metric(t, "apiserver_request_total", "code", "403")
}

// metric sums a counter or gauge over all its series in which a label has a value.
func metric(t *testing.T, name, label, value string) (n float64) {
	t.Helper()
	families := testenv.Must(legacyregistry.DefaultGatherer.Gather())(t)
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetName() == label && l.GetValue() == value {
					n += m.GetCounter().GetValue() + m.GetGauge().GetValue()
				}
			}
		}
	}
	return n
}

// TestControllersMaintainClusterObjects covers what the controllers keep for every cluster.
func TestControllersMaintainClusterObjects(t *testing.T) {
	c := shared
	c.term(t)
	ns := c.namespace(t, "objects")
	refused := refusals(t)

	t.Run("root CA", func(t *testing.T) { c.rootCA(t, ns) })
	t.Run("garbage", func(t *testing.T) { c.garbage(t, ns) })
	t.Run("garbage of a new kind", func(t *testing.T) { c.customGarbage(t, ns) })
	t.Run("token Secret", func(t *testing.T) { c.tokenSecret(t, ns) })
	t.Run("bootstrap token", c.bootstrapToken)
	t.Run("certificate", c.certificate)
	t.Run("quota", func(t *testing.T) { c.quota(t, ns) })
	t.Run("volume", func(t *testing.T) { c.volume(t, ns) })
	t.Run("policy status", c.policyStatus)
	// The controllers act under upstream's own roles, so a wrong identity shows as a refusal.
	if n := refusals(t) - refused; n != 0 {
		t.Errorf("the API server refused %g requests", n)
	}
	// Last: admission refuses what controllers still create in a namespace that goes.
	t.Run("namespace deletion", func(t *testing.T) { c.namespaceDeletion(t, ns) })
}

func configMap(name string, owner *corev1.ConfigMap) *corev1.ConfigMap {
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if owner != nil {
		m.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: owner.Name, UID: owner.UID}}
	}
	return m
}

func gone(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return errors.Join(errors.New("it is still there"), err)
}

func (c *cluster) rootCA(t *testing.T, ns string) {
	want := testenv.Must(os.ReadFile(c.path("ca.crt")))(t)
	eventually(t, "the root CA", func(ctx context.Context) error {
		m, err := c.client.CoreV1().ConfigMaps(ns).Get(ctx, "kube-root-ca.crt", metav1.GetOptions{})
		if err == nil && m.Data["ca.crt"] != string(want) {
			err = fmt.Errorf("it holds %q", m.Data["ca.crt"])
		}
		return err
	})
}

func (c *cluster) garbage(t *testing.T, ns string) {
	maps := c.client.CoreV1().ConfigMaps(ns)
	owner := testenv.Must(maps.Create(t.Context(), configMap("owner", nil), metav1.CreateOptions{}))(t)
	testenv.Must(maps.Create(t.Context(), configMap("owned", owner), metav1.CreateOptions{}))(t)
	testenv.NoError(t, maps.Delete(t.Context(), "owner", metav1.DeleteOptions{}))
	eventually(t, "the owned object goes with its owner", func(ctx context.Context) error {
		_, err := maps.Get(ctx, "owned", metav1.GetOptions{})
		return gone(err)
	})
}

// customGarbage does the same with a kind that did not exist when the term began.
func (c *cluster) customGarbage(t *testing.T, ns string) {
	client := testenv.Must(dynamic.NewForConfig(c.config))(t)
	crds := client.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	crd := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
		"metadata": map[string]any{"name": "boats.example.com"},
		"spec": map[string]any{
			"group": "example.com", "scope": "Namespaced",
			"names": map[string]any{"plural": "boats", "singular": "boat", "kind": "Boat", "listKind": "BoatList"},
			"versions": []any{map[string]any{"name": "v1", "served": true, "storage": true,
				"schema": map[string]any{"openAPIV3Schema": map[string]any{"type": "object"}}}},
		},
	}}
	testenv.Must(crds.Create(t.Context(), crd, metav1.CreateOptions{}))(t)
	t.Cleanup(func() { _ = crds.Delete(context.Background(), "boats.example.com", metav1.DeleteOptions{}) })

	owner := testenv.Must(c.client.CoreV1().ConfigMaps(ns).Create(t.Context(), configMap("harbour", nil), metav1.CreateOptions{}))(t)
	boats := client.Resource(schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "boats"}).Namespace(ns)
	boat := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "example.com/v1", "kind": "Boat",
		"metadata": map[string]any{"name": "coracle", "ownerReferences": []any{map[string]any{
			"apiVersion": "v1", "kind": "ConfigMap", "name": owner.Name, "uid": string(owner.UID)}}},
	}}
	eventually(t, "the new kind is served", func(ctx context.Context) error {
		_, err := boats.Create(ctx, boat, metav1.CreateOptions{})
		return err
	})
	testenv.NoError(t, c.client.CoreV1().ConfigMaps(ns).Delete(t.Context(), "harbour", metav1.DeleteOptions{}))
	eventually(t, "the owned custom object goes with its owner", func(ctx context.Context) error {
		_, err := boats.Get(ctx, "coracle", metav1.GetOptions{})
		return gone(err)
	})
}

func (c *cluster) tokenSecret(t *testing.T, ns string) {
	secrets := c.client.CoreV1().Secrets(ns)
	testenv.Must(secrets.Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "token", Annotations: map[string]string{corev1.ServiceAccountNameKey: "default"}},
		Type:       corev1.SecretTypeServiceAccountToken,
	}, metav1.CreateOptions{}))(t)
	eventually(t, "the Secret is filled", func(ctx context.Context) error {
		s, err := secrets.Get(ctx, "token", metav1.GetOptions{})
		if err == nil && (len(s.Data["token"]) == 0 || len(s.Data["ca.crt"]) == 0) {
			err = errors.New("it is not")
		}
		return err
	})
}

// bootstrapToken needs the two controllers that upstream leaves off.
func (c *cluster) bootstrapToken(t *testing.T) {
	public, system := c.client.CoreV1().ConfigMaps(metav1.NamespacePublic), c.client.CoreV1().Secrets(metav1.NamespaceSystem)
	testenv.Must(public.Create(t.Context(), &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "cluster-info"}, Data: map[string]string{"kubeconfig": "apiVersion: v1\nkind: Config\n"},
	}, metav1.CreateOptions{}))(t)
	token := func(id, expires string) *corev1.Secret {
		return &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: "bootstrap-token-" + id}, Type: corev1.SecretTypeBootstrapToken,
			StringData: map[string]string{"token-id": id, "token-secret": "0123456789abcdef", "usage-bootstrap-signing": "true", "expiration": expires},
		}
	}
	testenv.Must(system.Create(t.Context(), token("abcdef", "2099-01-01T00:00:00Z"), metav1.CreateOptions{}))(t)
	testenv.Must(system.Create(t.Context(), token("fedcba", "2001-01-01T00:00:00Z"), metav1.CreateOptions{}))(t)
	eventually(t, "cluster-info is signed", func(ctx context.Context) error {
		m, err := public.Get(ctx, "cluster-info", metav1.GetOptions{})
		if err == nil && m.Data["jws-kubeconfig-abcdef"] == "" {
			err = fmt.Errorf("it has %d entries", len(m.Data))
		}
		return err
	})
	eventually(t, "the expired token goes", func(ctx context.Context) error {
		_, err := system.Get(ctx, "bootstrap-token-fedcba", metav1.GetOptions{})
		return gone(err)
	})
}

func (c *cluster) certificate(t *testing.T) {
	key := testenv.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	request := testenv.Must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "someone"}}, key))(t)
	csrs := c.client.CertificatesV1().CertificateSigningRequests()
	csr := testenv.Must(csrs.Create(t.Context(), &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: "someone"},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			Request:    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: request}),
			SignerName: certificatesv1.KubeAPIServerClientSignerName,
			Usages:     []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth},
		},
	}, metav1.CreateOptions{}))(t)
	csr.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{
		Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "Test"}}
	testenv.Must(csrs.UpdateApproval(t.Context(), "someone", csr, metav1.UpdateOptions{}))(t)
	eventually(t, "the certificate", func(ctx context.Context) error {
		var err error
		if csr, err = csrs.Get(ctx, "someone", metav1.GetOptions{}); err == nil && len(csr.Status.Certificate) == 0 {
			err = errors.New("none")
		}
		return err
	})
	block, _ := pem.Decode(csr.Status.Certificate)
	cert := testenv.Must(x509.ParseCertificate(block.Bytes))(t)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(testenv.Must(os.ReadFile(c.path("ca.crt")))(t))
	testenv.Check(t, testenv.Err(cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})))
}

func (c *cluster) quota(t *testing.T, ns string) {
	quotas := c.client.CoreV1().ResourceQuotas(ns)
	testenv.Must(quotas.Create(t.Context(), &corev1.ResourceQuota{
		ObjectMeta: metav1.ObjectMeta{Name: "few"},
		Spec:       corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{"count/secrets": resource.MustParse("50")}},
	}, metav1.CreateOptions{}))(t)
	eventually(t, "what is used", func(ctx context.Context) error {
		q, err := quotas.Get(ctx, "few", metav1.GetOptions{})
		if used := q.Status.Used["count/secrets"]; err == nil && used.IsZero() {
			err = errors.New("not counted")
		}
		return err
	})
}

// volume is bound, and counted by the metrics of whichever term runs.
func (c *cluster) volume(t *testing.T, ns string) {
	room := corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
	modes := []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	none := ""
	testenv.Must(c.client.CoreV1().PersistentVolumes().Create(t.Context(), &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "disk"},
		Spec: corev1.PersistentVolumeSpec{Capacity: room, AccessModes: modes,
			PersistentVolumeSource: corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/nonexistent"}}},
	}, metav1.CreateOptions{}))(t)
	// A claim that comes before its volume is available waits for upstream's next round, 15 s later.
	eventually(t, "the volume is available", func(ctx context.Context) error {
		v, err := c.client.CoreV1().PersistentVolumes().Get(ctx, "disk", metav1.GetOptions{})
		if err == nil && v.Status.Phase != corev1.VolumeAvailable {
			err = fmt.Errorf("it is %s", v.Status.Phase)
		}
		return err
	})
	claims := c.client.CoreV1().PersistentVolumeClaims(ns)
	testenv.Must(claims.Create(t.Context(), &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: "disk"},
		Spec: corev1.PersistentVolumeClaimSpec{AccessModes: modes, StorageClassName: &none,
			Resources: corev1.VolumeResourceRequirements{Requests: room}},
	}, metav1.CreateOptions{}))(t)
	eventually(t, "the claim is bound", func(ctx context.Context) error {
		claim, err := claims.Get(ctx, "disk", metav1.GetOptions{})
		if err == nil && claim.Status.Phase != corev1.ClaimBound {
			err = fmt.Errorf("it is %s", claim.Status.Phase)
		}
		return err
	})
	eventually(t, "the bound claim is counted", func(context.Context) error {
		if n := metric(t, "pv_collector_bound_pvc_count", "namespace", ns); n != 1 {
			return fmt.Errorf("as %g", n)
		}
		return nil
	})
}

// policyStatus needs the controller that is built only when a policy exists.
func (c *cluster) policyStatus(t *testing.T) {
	policies := c.client.AdmissionregistrationV1().ValidatingAdmissionPolicies()
	fail := admissionv1.Fail
	testenv.Must(policies.Create(t.Context(), &admissionv1.ValidatingAdmissionPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "few-replicas"},
		Spec: admissionv1.ValidatingAdmissionPolicySpec{
			FailurePolicy: &fail,
			MatchConstraints: &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{{
				RuleWithOperations: admissionv1.RuleWithOperations{
					Operations: []admissionv1.OperationType{admissionv1.Create},
					Rule:       admissionv1.Rule{APIGroups: []string{"apps"}, APIVersions: []string{"v1"}, Resources: []string{"deployments"}},
				}}}},
			Validations: []admissionv1.Validation{{Expression: "object.spec.replicas <= 5"}},
		},
	}, metav1.CreateOptions{}))(t)
	t.Cleanup(func() { _ = policies.Delete(context.Background(), "few-replicas", metav1.DeleteOptions{}) })
	eventually(t, "the expression is checked", func(ctx context.Context) error {
		p, err := policies.Get(ctx, "few-replicas", metav1.GetOptions{})
		if err == nil && p.Status.ObservedGeneration != p.Generation {
			err = errors.New("not yet")
		}
		return err
	})
}

func (c *cluster) namespaceDeletion(t *testing.T, ns string) {
	testenv.NoError(t, c.client.CoreV1().Namespaces().Delete(t.Context(), ns, metav1.DeleteOptions{}))
	eventually(t, "the namespace with all in it goes", func(ctx context.Context) error {
		_, err := c.client.CoreV1().Namespaces().Get(ctx, ns, metav1.GetOptions{})
		return gone(err)
	})
}
