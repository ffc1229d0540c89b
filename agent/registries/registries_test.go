// SPDX-License-Identifier: Apache-2.0

package registries

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func mustParse(t *testing.T, text string) *Config {
	t.Helper()
	return testenv.Must(parse([]byte(text)))(t)
}

func TestHostsFilesOfEachRegistry(t *testing.T) {
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	testenv.NoError(t, os.WriteFile(ca, nil, 0o600))
	c := mustParse(t, strings.ReplaceAll(`
mirrors:
  docker.io:
    endpoint:
      - "https://mirror.example.org:5000/cache/v2/"
      - "http://10.0.0.5"
  "*":
    endpoint: [any.example.org]
configs:
  mirror.example.org:5000:
    auth: {username: u, password: p}
    tls: {ca_file: CA, cert_file: CA, key_file: CA}
  private.example.org:
    auth: {auth: dTpw}
    tls: {insecure_skip_verify: true}
`, "CA", ca))
	const head = "# Written by coracle from registries.yaml at each start.\n"
	want := []file{
		{"_default", head + `
[host."https://any.example.org/v2"]
  capabilities = ["pull", "resolve"]
  override_path = true
`},
		{"docker.io", head + `server = "https://registry-1.docker.io/v2"

[host."https://mirror.example.org:5000/cache/v2"]
  capabilities = ["pull", "resolve"]
  override_path = true
  ca = ["` + ca + `"]
  client = [["` + ca + `", "` + ca + `"]]

[host."http://10.0.0.5/v2"]
  capabilities = ["pull", "resolve"]
  override_path = true
`},
		{"mirror.example.org:5000", head + `server = "https://mirror.example.org:5000/v2"
ca = ["` + ca + `"]
client = [["` + ca + `", "` + ca + `"]]

[host."https://any.example.org/v2"]
  capabilities = ["pull", "resolve"]
  override_path = true
`},
		{"private.example.org", head + `server = "https://private.example.org/v2"
skip_verify = true

[host."https://any.example.org/v2"]
  capabilities = ["pull", "resolve"]
  override_path = true
`},
	}
	if got := c.files(nil); !reflect.DeepEqual(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
	}
	auths := map[string]Auth{"mirror.example.org:5000": {Username: "u", Password: "p"}, "private.example.org": {Auth: "dTpw"}}
	if got := c.Auths(); !reflect.DeepEqual(got, auths) {
		t.Errorf("credentials %v", got)
	}
}

func TestWriteReplacesEarlierMirrors(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "certs.d")
	testenv.NoError(t, mustParse(t, "mirrors: {a.example.org: {endpoint: [b.example.org]}}").Write(dir, nil))
	testenv.NoError(t, mustParse(t, "mirrors: {c.example.org: {endpoint: [b.example.org]}}").Write(dir, nil))
	got, err := filepath.Glob(dir + "/*/hosts.toml")
	testenv.False(t, err != nil || len(got) != 1 || !strings.HasSuffix(got[0], "c.example.org/hosts.toml"), "%v, %v", got, err)
}

func TestMissingFileIsEmpty(t *testing.T) {
	c, err := Load(filepath.Join(t.TempDir(), "registries.yaml"))
	testenv.False(t, err != nil || len(c.Mirrors)+len(c.Configs)+len(c.files(nil)) != 0, "%v, %v", c, err)
}

func TestMistakesInTheFileAreNamed(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		want []string
	}{
		"syntax":         {"mirrors:\n  docker.io: [", []string{"line 2"}},
		"unknown key":    {"mirrors:\n  docker.io:\n    endpoints: [a]\n", []string{"line 3", "endpoints"}},
		"wrong type":     {"mirrors:\n  docker.io:\n    endpoint: yes\n", []string{"line 3"}},
		"top-level key":  {"mirror: {}\n", []string{"line 1", "mirror"}},
		"two documents":  {"mirrors: {}\n---\nconfigs: {}\n", []string{"more than one"}},
		"URL as name":    {"mirrors:\n  https://docker.io: {endpoint: [a]}\n", []string{"https://docker.io"}},
		"bad endpoint":   {"mirrors:\n  docker.io: {endpoint: ['ftp://a']}\n", []string{"ftp://a"}},
		"secrets in URL": {"mirrors:\n  docker.io: {endpoint: ['https://u:p@a']}\n", []string{"configs"}},
		"half a pair":    {"configs:\n  a: {tls: {cert_file: /etc/passwd}}\n", []string{"key_file"}},
		"bad pattern":    {"mirrors:\n  a: {endpoint: [b], rewrite: {'(': x}}\n", []string{"rewrite"}},
		"bad base64":     {"configs:\n  a: {auth: {auth: '%'}}\n", []string{"base64"}},
		"missing file":   {"configs:\n  a: {tls: {ca_file: /does/not/exist}}\n", []string{"/does/not/exist"}},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "registries.yaml")
			testenv.NoError(t, os.WriteFile(path, []byte(tc.text), 0o600))
			_, err := Load(path)
			testenv.Require(t, err != nil, "no error")
			for _, want := range append(tc.want, path) {
				testenv.True(t, strings.Contains(err.Error(), want), "the message does not name %q: %v", want, err)
			}
			if strings.Contains(err.Error(), "registries.Config") || strings.Contains(err.Error(), "registries.Mirror") {
				t.Errorf("the message names Go types: %v", err)
			}
			t.Log(err)
		})
	}
}
