// SPDX-License-Identifier: Apache-2.0

package s3settings

import (
	"encoding/base64"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/coracle-k8s/coracle/test/testca"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestParseNamesEveryMistake(t *testing.T) {
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
	testenv.EqualSlices(t, wrong, want, "wrong are")
}

// TestFromSecret: the keys of k3s' Secrets.
func TestFromSecret(t *testing.T) {
	got := FromSecret(map[string][]byte{"etcd-s3-bucket": []byte("k3s"), "snapshot-s3-bucket": []byte("boats"), "etcd-s3-access-key": []byte("a"), "other": []byte("x")})
	if len(got) != 2 || got[Bucket] != "boats" || got[AccessKey] != "a" {
		t.Errorf("%q", got)
	}
}

func TestCertificateIsTakenAsPEMOrBase64(t *testing.T) {
	dir := t.TempDir()
	testenv.Must(testca.New(dir))(t)
	ca := testenv.Must(os.ReadFile(filepath.Join(dir, "ca.crt")))(t)
	for _, text := range []string{string(ca), base64.StdEncoding.EncodeToString(ca)} {
		if s, err := Parse(map[string]string{Bucket: "b", EndpointCA: text}); err != nil || s.CA == nil {
			t.Errorf("%.20q: %v", text, err)
		}
	}
}

// TestFolderIsCleanedAndStaysInTheBucket: however a folder is spelt, the objects in it are those that are listed there.
// One that leads out of the bucket is refused.
func TestFolderIsCleanedAndStaysInTheBucket(t *testing.T) {
	for text, want := range map[string]string{
		"": "", "/": "", ".": "", "a": "a", "a/b/": "a/b", "/a//b": "a/b", "./a": "a", "a/./b": "a/b", "a/../b": "b", "a/..": "", "..a/b..": "..a/b..",
	} {
		testenv.Equal(t, testenv.Must(Parse(map[string]string{Bucket: "b", Folder: text}))(t).Folder, want, "%q is the folder", text)
	}
	for _, text := range []string{"..", "../a", "a/../../b", "/../a", "a\x00b", "a\nb"} {
		if _, err := Parse(map[string]string{Bucket: "b", Folder: text}); len(Each(err)) != 1 || Each(err)[0].Name != Folder {
			t.Errorf("%q as a folder: %v", text, err)
		}
	}
}

// TestRequestSettingsOverrideTheServers: what is given for one request goes before what the server has, and a session
// token is that of its own keys.
func TestRequestSettingsOverrideTheServers(t *testing.T) {
	base := map[string]string{Bucket: "b", AccessKey: "a", SecretKey: "s", SessionToken: "t"}
	for _, c := range []struct{ over, want map[string]string }{
		{nil, base},
		{map[string]string{Bucket: "c", Folder: ""}, map[string]string{Bucket: "c", Folder: "", AccessKey: "a", SecretKey: "s", SessionToken: "t"}},
		{map[string]string{AccessKey: "x", SecretKey: "y"}, map[string]string{Bucket: "b", AccessKey: "x", SecretKey: "y"}},
		{map[string]string{AccessKey: "x", SecretKey: "y", SessionToken: "z"}, map[string]string{Bucket: "b", AccessKey: "x", SecretKey: "y", SessionToken: "z"}},
		{map[string]string{SessionToken: "z"}, map[string]string{Bucket: "b", AccessKey: "a", SecretKey: "s", SessionToken: "z"}},
		{map[string]string{AccessKey: "a"}, base},
	} {
		if got := Over(base, c.over); !maps.Equal(got, c.want) {
			t.Errorf("%q over %q is %q, want %q", c.over, base, got, c.want)
		}
	}
	testenv.True(t, len(base) == 4, "the lower settings were changed: %q", base)
}

// TestErrorsKeepSecrets: nothing of a key or a password is in an error, wherever it was put by mistake.
func TestErrorsKeepSecrets(t *testing.T) {
	const secret = "hunter2"
	for _, name := range []string{AccessKey, SecretKey, SessionToken} {
		if _, err := Parse(map[string]string{name: secret}); err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, text := range map[string]string{
		Endpoint: "https://user:hunter2@s3.example.com/boats", Proxy: "http://user:hunter2@", EndpointCA: "hunter2",
	} {
		if _, err := Parse(map[string]string{Bucket: "b", name: text}); err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Parse(map[string]string{Bucket: "b", Endpoint: "user:hunter2@s3.example.com"}); err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("a user in the endpoint: %v", err)
	}
}

// TestEndpointsAreThoseMinioTakes: what minio would refuse, or read otherwise, is refused when it is read.
func TestEndpointsAreThoseMinioTakes(t *testing.T) {
	for text, good := range map[string]bool{
		"s3.example.com": true, "s3.example.com:9000": true, "10.0.0.9": true, "10.0.0.9:9000": true, "[fd00::9]:9000": true, "minio": true, "minio:9000": true,
		"https://s3.example.com": false, "s3.example.com/boats": false, ":9000": false, "minio:": false, "minio:90000": false, "minio:http": false, "a b": false, "minio?x": false, "minio#x": false,
		"fd00::9": false, "[fd00::9": false, "user@minio": false,
	} {
		s, err := Parse(map[string]string{Bucket: "b", Endpoint: text})
		if (err == nil) != good {
			t.Errorf("%q: %v", text, err)
		}
		if err == nil {
			testenv.Check(t, testenv.Err(minio.New(s.Endpoint, &minio.Options{Secure: true})), "%q is taken, and minio says", text)
		}
	}
}
