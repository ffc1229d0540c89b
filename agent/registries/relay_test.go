// SPDX-License-Identifier: Apache-2.0

package registries

import (
	"bufio"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// mirror is a registry that wants a token for each repository, and gives it to one user only.
func mirror(t *testing.T) *httptest.Server {
	t.Helper()
	mux := http.NewServeMux()
	var server *httptest.Server
	mux.HandleFunc("/token", func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		if user != "u" || password != "p" {
			http.Error(w, "who are you", http.StatusUnauthorized)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]string{"token": "for " + r.URL.Query().Get("scope")})
	})
	mux.HandleFunc("/v2/", func(w http.ResponseWriter, r *http.Request) {
		name, what, _ := splitName(strings.TrimPrefix(r.URL.Path, "/v2/"))
		if r.Header.Get("Authorization") != "Bearer for repository:"+name+":pull" {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+server.URL+`/token",service="mirror",scope="repository:`+name+`:pull"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Header().Set("Docker-Content-Digest", "sha256:x")
		_, _ = io.WriteString(w, name+what+"?"+r.URL.RawQuery+" "+r.Header.Get("Range"))
	})
	server = httptest.NewTLSServer(mux)
	t.Cleanup(server.Close)
	return server
}

func TestRelayServesMirrorWithRewritesAndCredentials(t *testing.T) {
	server := mirror(t)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	testenv.NoError(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	host := strings.TrimPrefix(server.URL, "https://")
	c := mustParse(t, strings.NewReplacer("CA", ca, "HOST", host).Replace(`
mirrors:
  docker.io:
    endpoint: ["https://HOST"]
    rewrite: {"^library/(.*)": "cache/$1", "^library/special$": "other/special"}
configs:
  "HOST": {auth: {username: u, password: p}, tls: {ca_file: CA}}
`))
	relay := testenv.Must(NewRelay(c))(t)
	defer testenv.Run(t, relay.Run)()
	base := relay.url("docker.io", "https://"+host)
	if toml := c.files(relay)[0].toml; !strings.Contains(toml, base) || strings.Contains(toml, host+"/v2\"]") {
		t.Errorf("containerd is not led to the relay:\n%s", toml)
	}

	for path, want := range map[string]string{
		"/library/busybox/manifests/1.0?ns=docker.io": "cache/busybox/manifests/1.0?ns=docker.io ",
		"/library/special/blobs/sha256:x":             "other/special/blobs/sha256:x? ",
		"/rancher/tools/tags/list":                    "rancher/tools/tags/list? ",
	} {
		if status, body := get(t, base+path, ""); status != http.StatusOK || body != want {
			t.Errorf("%s: %d %q, want %q", path, status, body, want)
		}
	}
	if _, body := get(t, base+"/a/blobs/x", "bytes=10-"); !strings.HasSuffix(body, "bytes=10-") {
		t.Errorf("the range is not passed on: %q", body)
	}
	for _, path := range []string{"/v2/", "/library/busybox", strings.Replace(base, relay.secret, "guess", 1)} {
		url := base + path
		if strings.HasPrefix(path, "http") {
			url = path + "/a/blobs/x"
		}
		if status, _ := get(t, url, ""); status != http.StatusNotFound {
			t.Errorf("%s: %d", path, status)
		}
	}
}

// failing is a listener that the kernel gives nothing for once.
type failing struct{ net.Listener }

func (failing) Accept() (net.Conn, error) { return nil, unix.ENOMEM }

// TestRestartedRelayKeepsItsAddress: after a failure the relay answers at the address that containerd knows.
func TestRestartedRelayKeepsItsAddress(t *testing.T) {
	relay := testenv.Must(NewRelay(mustParse(t, `mirrors: {a.example.org: {endpoint: [b.example.org], rewrite: {"^x": "y"}}}`)))(t)
	base := relay.url("a.example.org", "nobody")
	relay.port.Listener = failing{relay.port.Listener}
	testenv.ErrorIs(t, relay.Run(t.Context()), unix.ENOMEM, "a kernel without memory")
	defer testenv.Run(t, relay.Run)()
	testenv.Eventually(t, 2*time.Minute, "an answer", func() error {
		answer, err := http.Get(base)
		if err == nil {
			answer.Body.Close()
		}
		return err
	})
}

// TestConnectionsOfOtherUsersEndFirst: users of the machine who do not know the relay's secret have a bounded number of
// connections, and close none of containerd's.
func TestConnectionsOfOtherUsersEndFirst(t *testing.T) {
	relay := testenv.Must(NewRelay(mustParse(t, `mirrors: {a.example.org: {endpoint: ["http://127.0.0.1:1"], rewrite: {"^x": "y"}}}`)))(t)
	defer testenv.Run(t, relay.Run)()
	own := testenv.Must(net.Dial("tcp", relay.port.Addr().String()))(t)
	defer own.Close()
	answers := bufio.NewReader(own)
	ask := func() {
		t.Helper()
		testenv.Must(fmt.Fprintf(own, "GET %s/x/tags/list HTTP/1.1\r\nHost: relay\r\n\r\n",
			strings.TrimPrefix(relay.url("a.example.org", "http://127.0.0.1:1"), "http://"+relay.port.Addr().String())))(t)
		answer := testenv.Must(http.ReadResponse(answers, nil))(t)
		testenv.Must(io.Copy(io.Discard, answer.Body))(t)
		testenv.Equal(t, answer.StatusCode, http.StatusBadGateway, "a mirror that is off:")
	}
	ask()
	var foreign []net.Conn
	for range 2 * maxForeign {
		c := testenv.Must(net.Dial("tcp", relay.port.Addr().String()))(t)
		defer c.Close()
		foreign = append(foreign, c)
	}
	testenv.Fails(t, testenv.Err(foreign[0].Read(make([]byte, 1))), "the oldest of too many is open")
	ask()
}

func get(t *testing.T, url, ranges string) (int, string) {
	t.Helper()
	req := testenv.Must(http.NewRequest(http.MethodGet, url, nil))(t)
	if ranges != "" {
		req.Header.Set("Range", ranges)
	}
	resp := testenv.Must(http.DefaultClient.Do(req))(t)
	defer resp.Body.Close()
	body := testenv.Must(io.ReadAll(resp.Body))(t)
	return resp.StatusCode, string(body)
}

func TestNoRelayWithoutRewrites(t *testing.T) {
	relay, err := NewRelay(mustParse(t, "mirrors: {a.example.org: {endpoint: [b.example.org]}}"))
	testenv.False(t, relay != nil || err != nil, "%v, %v", relay, err)
}
