// SPDX-License-Identifier: Apache-2.0

package s3settings

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/internal/testca"
)

func TestParse(t *testing.T) {
	s, err := Parse(map[string]string{Bucket: "boats", Folder: "/a/b/"})
	if err != nil || s.Endpoint != "s3.amazonaws.com" || s.Region != "us-east-1" || s.Timeout != 5*time.Minute || s.Retention != 5 || s.Folder != "a/b" || s.Lookup != "auto" {
		t.Errorf("%+v, %v", s, err)
	}
	_, err = Parse(map[string]string{
		Endpoint: "https://s3.example.com", Lookup: "virtual", AccessKey: "only", Insecure: "perhaps", Timeout: "5", Retention: "0", Proxy: "squid", EndpointCA: "/etc/ca.pem",
	})
	var wrong []string
	for _, e := range Each(err) {
		wrong = append(wrong, e.Name)
	}
	slices.Sort(wrong)
	want := []string{AccessKey, Bucket, Lookup, Endpoint, EndpointCA, Insecure, Proxy, Retention, Timeout}
	slices.Sort(want)
	if !slices.Equal(wrong, want) {
		t.Errorf("wrong are %q, want %q", wrong, want)
	}
}

// TestFromSecret: the keys of k3s' Secrets.
func TestFromSecret(t *testing.T) {
	got := FromSecret(map[string][]byte{"etcd-s3-bucket": []byte("k3s"), "snapshot-s3-bucket": []byte("boats"), "etcd-s3-access-key": []byte("a"), "other": []byte("x")})
	if len(got) != 2 || got[Bucket] != "boats" || got[AccessKey] != "a" {
		t.Errorf("%q", got)
	}
}

func TestCertificates(t *testing.T) {
	dir := t.TempDir()
	if _, err := testca.New(dir); err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{string(ca), base64.StdEncoding.EncodeToString(ca)} {
		if s, err := Parse(map[string]string{Bucket: "b", EndpointCA: text}); err != nil || s.CA == nil {
			t.Errorf("%.20q: %v", text, err)
		}
	}
}
