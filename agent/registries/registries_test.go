// SPDX-License-Identifier: Apache-2.0

package registries

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
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

// TestSettingsForAnyHost: the entry "*" counts for each host without an entry of its own, as k3s documents it.
func TestSettingsForAnyHost(t *testing.T) {
	c := mustParse(t, `
mirrors:
  docker.io: {endpoint: [a.example.org, b.example.org]}
  "*": {endpoint: [any.example.org]}
configs:
  "*": {auth: {username: u, password: p}, tls: {insecure_skip_verify: true}}
  b.example.org: {auth: {username: v, password: q}}
`)
	relay := testenv.Must(NewRelay(c))(t)
	t.Cleanup(func() { testenv.Check(t, relay.port.Close()) })
	const head, pull = "# Written by coracle from registries.yaml at each start.\n", "  capabilities = [\"pull\", \"resolve\"]\n  override_path = true\n"
	const skip = "skip_verify = true\n"
	anyHost := "\n[host.\"" + relay.url("*", "any.example.org") + "\"]\n" + pull
	want := []file{
		{"_default", head + skip + anyHost},
		{"docker.io", head + "server = \"https://registry-1.docker.io/v2\"\n" + skip + "\n[host.\"https://a.example.org/v2\"]\n" + pull + "  " + skip +
			"\n[host.\"https://b.example.org/v2\"]\n" + pull},
		{"b.example.org", head + "server = \"https://b.example.org/v2\"\n" + anyHost},
	}
	got := c.files(relay)
	for _, f := range want {
		testenv.True(t, len(got) == len(want) && slices.Contains(got, f), "%s is not among %q", f, got)
	}
	every, own := Auth{Username: "u", Password: "p"}, Auth{Username: "v", Password: "q"}
	auths := map[string]Auth{"docker.io": every, hubHost: every, "a.example.org": every, "b.example.org": own, "any.example.org": every}
	if got := c.Auths(); !reflect.DeepEqual(got, auths) {
		t.Errorf("credentials %v", got)
	}
	for image, want := range map[string]string{
		"other.example.org:5000/team/app:1": "other.example.org:5000", "b.example.org/app": "", "app:1": "", "Not An Image": "",
	} {
		if host, auth := c.AuthOfImage(image); host != want || (auth != nil) != (want != "") || auth != nil && *auth != every {
			t.Errorf("for %s the credentials of %q are %v", image, host, auth)
		}
	}
	only := mustParse(t, `configs: {"*": {auth: {username: u, password: p}}, b.example.org: {tls: {insecure_skip_verify: true}}}`)
	host, auth := only.AuthOfImage("app:1")
	testenv.True(t, host == hubHost && auth != nil && *auth == every, "for Docker Hub: %s %v", host, auth)
	if host, auth := only.AuthOfImage("b.example.org/app:1"); auth != nil {
		t.Errorf("a host with an entry of its own, which has no credentials, gets %v at %s", auth, host)
	}
}

// TestDefaultEndpointIsDisabled: a registry with mirrors is not asked itself, so that nothing waits for it.
func TestDefaultEndpointIsDisabled(t *testing.T) {
	c := mustParse(t, `
mirrors:
  docker.io: {endpoint: ["http://a.example.org", "http://b.example.org/x"]}
  rewritten.example.org: {endpoint: [c.example.org], rewrite: {"^a": "b"}}
  none.example.org: {}
`)
	c.DisableDefaultEndpoint = true
	relay := testenv.Must(NewRelay(c))(t)
	t.Cleanup(func() { testenv.Check(t, relay.port.Close()) })
	const head, pull = "# Written by coracle from registries.yaml at each start.\nserver = ", "capabilities = [\"pull\", \"resolve\"]\n"
	const override = "override_path = true\n"
	want := []file{
		{"docker.io", head + "\"http://b.example.org/x\"\n" + pull + override + "\n[host.\"http://a.example.org/v2\"]\n  " + pull + "  " + override},
		{"none.example.org", head + "\"https://none.example.org/v2\"\n"},
		{"rewritten.example.org", head + "\"" + relay.url("rewritten.example.org", "c.example.org") + "\"\n" + pull + override},
	}
	if got := c.files(relay); !reflect.DeepEqual(got, want) {
		t.Errorf("got %q\nwant %q", got, want)
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
