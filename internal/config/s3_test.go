// SPDX-License-Identifier: Apache-2.0

package config_test

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

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/test/testca"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestParseS3NamesEveryMistake(t *testing.T) {
	s, err := config.ParseS3(map[string]string{config.S3Bucket: "boats", config.S3Folder: "/a/b/"})
	if err != nil || s.Endpoint != "s3.amazonaws.com" || s.Region != "us-east-1" || s.Timeout != 5*time.Minute || s.Retention != 5 || s.Folder != "a/b" || s.Lookup != "auto" {
		t.Errorf("%+v, %v", s, err)
	}
	_, err = config.ParseS3(map[string]string{
		config.S3Endpoint: "https://s3.example.com", config.S3Lookup: "virtual", config.S3AccessKey: "only", config.S3Insecure: "perhaps", config.S3Timeout: "5", config.S3Retention: "0", config.S3Proxy: "squid", config.S3EndpointCA: "/etc/ca.pem",
	})
	var wrong []string
	for _, e := range config.S3Errors(err) {
		wrong = append(wrong, e.Name)
	}
	slices.Sort(wrong)
	want := []string{config.S3AccessKey, config.S3Bucket, config.S3Lookup, config.S3Endpoint, config.S3EndpointCA, config.S3Insecure, config.S3Proxy, config.S3Retention, config.S3Timeout}
	slices.Sort(want)
	testenv.EqualSlices(t, wrong, want, "wrong are")
}

// TestS3FromSecret: the keys of k3s' Secrets.
func TestS3FromSecret(t *testing.T) {
	got := config.S3FromSecret(map[string][]byte{"etcd-s3-bucket": []byte("k3s"), "snapshot-s3-bucket": []byte("boats"), "etcd-s3-access-key": []byte("a"), "other": []byte("x")})
	testenv.True(t, len(got) == 2 && got[config.S3Bucket] == "boats" && got[config.S3AccessKey] == "a", "%q", got)
}

func TestS3CertificateIsTakenAsPEMOrBase64(t *testing.T) {
	dir := t.TempDir()
	testenv.Must(testca.New(dir))(t)
	ca := testenv.Must(os.ReadFile(filepath.Join(dir, "ca.crt")))(t)
	for _, text := range []string{string(ca), base64.StdEncoding.EncodeToString(ca)} {
		if s, err := config.ParseS3(map[string]string{config.S3Bucket: "b", config.S3EndpointCA: text}); err != nil || s.CA == nil {
			t.Errorf("%.20q: %v", text, err)
		}
	}
}

// TestS3FolderIsCleanedAndStaysInTheBucket: however a folder is spelt, the objects in it are those listed there.
// One that leads out of the bucket is refused.
func TestS3FolderIsCleanedAndStaysInTheBucket(t *testing.T) {
	for text, want := range map[string]string{
		"": "", "/": "", ".": "", "a": "a", "a/b/": "a/b", "/a//b": "a/b", "./a": "a", "a/./b": "a/b", "a/../b": "b", "a/..": "", "..a/b..": "..a/b..",
	} {
		testenv.Equal(t, testenv.Must(config.ParseS3(map[string]string{config.S3Bucket: "b", config.S3Folder: text}))(t).Folder, want, "%q is the folder", text)
	}
	for _, text := range []string{"..", "../a", "a/../../b", "/../a", "a\x00b", "a\nb"} {
		if _, err := config.ParseS3(map[string]string{config.S3Bucket: "b", config.S3Folder: text}); len(config.S3Errors(err)) != 1 || config.S3Errors(err)[0].Name != config.S3Folder {
			t.Errorf("%q as a folder: %v", text, err)
		}
	}
}

// TestS3RequestSettingsOverrideTheServers: what is given for one request goes before what the server has, and a session
// token is that of its own keys.
func TestS3RequestSettingsOverrideTheServers(t *testing.T) {
	base := map[string]string{config.S3Bucket: "b", config.S3AccessKey: "a", config.S3SecretKey: "s", config.S3SessionToken: "t"}
	for _, c := range []struct{ over, want map[string]string }{
		{nil, base},
		{map[string]string{config.S3Bucket: "c", config.S3Folder: ""},
			map[string]string{config.S3Bucket: "c", config.S3Folder: "", config.S3AccessKey: "a", config.S3SecretKey: "s", config.S3SessionToken: "t"}},
		{map[string]string{config.S3AccessKey: "x", config.S3SecretKey: "y"},
			map[string]string{config.S3Bucket: "b", config.S3AccessKey: "x", config.S3SecretKey: "y"}},
		{map[string]string{config.S3AccessKey: "x", config.S3SecretKey: "y", config.S3SessionToken: "z"},
			map[string]string{config.S3Bucket: "b", config.S3AccessKey: "x", config.S3SecretKey: "y", config.S3SessionToken: "z"}},
		{map[string]string{config.S3SessionToken: "z"}, map[string]string{config.S3Bucket: "b", config.S3AccessKey: "a", config.S3SecretKey: "s", config.S3SessionToken: "z"}},
		{map[string]string{config.S3AccessKey: "a"}, base},
	} {
		if got := config.OverlayS3(base, c.over); !maps.Equal(got, c.want) {
			t.Errorf("%q over %q is %q, want %q", c.over, base, got, c.want)
		}
	}
	testenv.True(t, len(base) == 4, "the lower settings were changed: %q", base)
}

// TestS3ErrorsKeepSecrets: nothing of a key or a password is in an error, wherever it was put by mistake.
func TestS3ErrorsKeepSecrets(t *testing.T) {
	const secret = "hunter2"
	for _, name := range []string{config.S3AccessKey, config.S3SecretKey, config.S3SessionToken} {
		if _, err := config.ParseS3(map[string]string{name: secret}); err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, text := range map[string]string{
		config.S3Endpoint: "https://user:hunter2@s3.example.com/boats", config.S3Proxy: "http://user:hunter2@", config.S3EndpointCA: "hunter2",
	} {
		if _, err := config.ParseS3(map[string]string{config.S3Bucket: "b", name: text}); err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := config.ParseS3(map[string]string{config.S3Bucket: "b", config.S3Endpoint: "user:hunter2@s3.example.com"}); err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("a user in the endpoint: %v", err)
	}
}

// TestS3EndpointsAreThoseMinioTakes: what minio would refuse, or read otherwise, is refused when it is read.
func TestS3EndpointsAreThoseMinioTakes(t *testing.T) {
	for text, good := range map[string]bool{
		"s3.example.com": true, "s3.example.com:9000": true, "10.0.0.9": true, "10.0.0.9:9000": true, "[fd00::9]:9000": true, "minio": true, "minio:9000": true,
		"https://s3.example.com": false, "s3.example.com/boats": false, ":9000": false, "minio:": false, "minio:90000": false, "minio:http": false, "a b": false, "minio?x": false, "minio#x": false,
		"fd00::9": false, "[fd00::9": false, "user@minio": false,
	} {
		s, err := config.ParseS3(map[string]string{config.S3Bucket: "b", config.S3Endpoint: text})
		testenv.True(t, (err == nil) == good, "%q: %v", text, err)
		if err == nil {
			testenv.Check(t, testenv.Err(minio.New(s.Endpoint, &minio.Options{Secure: true})), "%q is taken, and minio says", text)
		}
	}
}
