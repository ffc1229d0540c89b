// SPDX-License-Identifier: Apache-2.0

package server

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/coracle-k8s/coracle/internal/s3settings"
)

// TestS3Secret: the Secret that k3s' users have gives the settings for S3; what was given otherwise goes before.
func TestS3Secret(t *testing.T) {
	in := metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: "s3"}
	client := fake.NewClientset(
		&corev1.Secret{ObjectMeta: in, Data: map[string][]byte{
			"etcd-s3-bucket": []byte("boats"), "etcd-s3-region": []byte("north"), "etcd-s3-endpoint-ca-name": []byte("s3"), "etcd-s3-access-key": []byte("a"), "etcd-s3-secret-key": []byte("s"),
		}},
		&corev1.ConfigMap{ObjectMeta: in, Data: map[string]string{"ca.crt": "-----BEGIN"}},
	)
	got, err := s3Values(t.Context(), client, "s3", map[string]string{s3settings.Region: "south"})
	if err != nil || got[s3settings.Bucket] != "boats" || got[s3settings.Region] != "south" || got[s3settings.SecretKey] != "s" || got[s3settings.EndpointCA] != "-----BEGIN\n" {
		t.Errorf("%q, %v", got, err)
	}
	if _, err := s3Values(t.Context(), client, "nothing", nil); err == nil || !strings.Contains(err.Error(), "reading the settings for S3") {
		t.Error(err)
	}
}
