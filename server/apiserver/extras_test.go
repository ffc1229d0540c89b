// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/test/testenv"
)

const encryptionConfig = `
apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets]
  providers:
  - secretbox: {keys: [{name: one, secret: %s}]}
  - identity: {}
`

const auditPolicy = `
apiVersion: audit.k8s.io/v1
kind: Policy
rules:
- level: Metadata
  resources: [{group: "", resources: [secrets]}]
- level: None
`

// TestServerWithExtras is a server with everything that is off by default:
// watch caches, encryption at rest, audit, a second service range.
func TestServerWithExtras(t *testing.T) {
	f := newFixture(t)
	write := func(name, text string) string {
		path := filepath.Join(f.dir, name)
		testenv.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	o := f.options(t)
	key := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("k"), 32))
	auditLog := filepath.Join(f.dir, "audit.log")
	o.EncryptionConfigFile = write("encryption.yaml", fmt.Sprintf(encryptionConfig, key))
	o.WatchCache = true
	o.Cluster.ServiceCIDRs = append(o.Cluster.ServiceCIDRs, netip.MustParsePrefix("2001:db8:43::/112"))
	o.APIServerArgs = []string{"audit-policy-file=" + write("audit.yaml", auditPolicy), "audit-log-path=" + auditLog, "audit-log-mode=blocking", "--profiling"}
	s := f.start(t, o)

	for name, test := range map[string]func(*testing.T, *running){
		"CreateWatchDelete": testCreateWatchDelete, "LoopbackWatch": testLoopbackWatch, "CustomResources": testCustomResources,
	} {
		t.Run(name, func(t *testing.T) { test(t, s) })
	}
	t.Run("Encryption and audit", func(t *testing.T) { testEncryptionAndAudit(t, s, auditLog) })
	t.Run("DualStack", func(t *testing.T) { testDualStack(t, s) })
}

func testEncryptionAndAudit(t *testing.T, s *running, auditLog string) {
	c := client(t, s.admin())
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "treasure"}, StringData: map[string]string{"where": "under the palm"}}
	testenv.Must(c.CoreV1().Secrets("default").Create(t.Context(), secret, metav1.CreateOptions{}))(t)
	got, err := c.CoreV1().Secrets("default").Get(t.Context(), "treasure", metav1.GetOptions{})
	testenv.False(t, err != nil || string(got.Data["where"]) != "under the palm", "Get: %q, %v", got.Data["where"], err)
	resp, err := s.f.store.Client().Client.Get(t.Context(), "/registry/secrets/default/treasure")
	testenv.Require(t, err == nil && len(resp.Kvs) == 1, "%d keys in the store, %v", len(resp.Kvs), err)
	if value := resp.Kvs[0].Value; !bytes.HasPrefix(value, []byte("k8s:enc:secretbox:v1:one:")) || bytes.Contains(value, []byte("palm")) {
		t.Errorf("in the store: %.60q", value)
	}
	eventually(t, "the audit log", func() error {
		data, err := os.ReadFile(auditLog)
		if err != nil {
			return err
		}
		if !strings.Contains(string(data), `"name":"treasure"`) {
			return errors.New("no line on the Secret")
		}
		return nil
	})
}

func testDualStack(t *testing.T, s *running) {
	c := client(t, s.admin())
	both := corev1.IPFamilyPolicyRequireDualStack
	service := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "two"}, Spec: corev1.ServiceSpec{IPFamilyPolicy: &both, Ports: []corev1.ServicePort{{Port: 80}}}}
	eventually(t, "a Service of both families", func() error {
		got, err := c.CoreV1().Services("default").Create(t.Context(), service, metav1.CreateOptions{})
		if err == nil && (len(got.Spec.ClusterIPs) != 2 || !strings.HasPrefix(got.Spec.ClusterIPs[1], "2001:db8:43:")) {
			err = fmt.Errorf("cluster IPs %v", got.Spec.ClusterIPs)
		}
		return err
	})
}
