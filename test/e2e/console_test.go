//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/gorilla/websocket"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// link is what coracle console prints for a browser.
var link = regexp.MustCompile(`http://127\.0\.0\.1:(\d+)/#code=(\S+)`)

// browser stands for one: it speaks to a console as the pages do.
type browser struct {
	*harness.Kube
	http  http.Client
	url   string // of the page, without a slash at its end
	token string
	tls   *tls.Config // of a console that is served by HTTPS
}

// newBrowser starts a console on the machine, and logs in by the link that it prints.
func newBrowser(k *harness.Kube, args ...string) *browser {
	k.T.Helper()
	cmd := k.Machine.Command(k.T.Context(), k.Machine.Coracle(), append([]string{"console", "--no-open"}, args...)...)
	cmd.Env = append(cmd.Environ(), "KUBECONFIG="+k.Kubeconfig)
	out := testenv.Must(cmd.StdoutPipe())(k.T)
	testenv.NoError(k.T, cmd.Start())
	k.T.Cleanup(func() { _ = cmd.Wait() }) // the context has ended it
	b := &browser{Kube: k, http: http.Client{Transport: &http.Transport{DialContext: k.Machine.Dial}}}
	k.T.Cleanup(b.http.CloseIdleConnections)
	var code string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if found := link.FindStringSubmatch(lines.Text()); found != nil {
			b.url, code = "http://127.0.0.1:"+found[1], found[2]
			break
		}
	}
	testenv.Require(k.T, code != "", "coracle console printed no link")
	go func() { _, _ = io.Copy(io.Discard, out) }()
	var login struct{ Token string }
	b.post("/login", map[string]string{"code": code}, &login)
	b.token = login.Token
	return b
}

// try makes a request and returns the answer's code and text.
func (b *browser) try(method, path string, body any) (int, string) {
	b.T.Helper()
	var text bytes.Buffer
	if body != nil {
		testenv.NoError(b.T, json.NewEncoder(&text).Encode(body))
	}
	r := testenv.Must(http.NewRequestWithContext(b.T.Context(), method, b.url+path, &text))(b.T)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Authorization", "Bearer "+b.token)
	response := testenv.Must(b.http.Do(r))(b.T)
	defer response.Body.Close()
	out := testenv.Must(io.ReadAll(response.Body))(b.T)
	return response.StatusCode, string(out)
}

func (b *browser) post(path string, body, out any) {
	b.T.Helper()
	code, text := b.try(http.MethodPost, path, body)
	testenv.Require(b.T, code == http.StatusOK, "POST %s: %d %s", path, code, text)
	if err := json.Unmarshal([]byte(text), out); err != nil {
		b.T.Fatalf("POST %s: %v: %s", path, err, text)
	}
}

// stream opens a WebSocket with one stream in it.
func (b *browser) stream(open map[string]any) *websocket.Conn {
	b.T.Helper()
	d := websocket.Dialer{
		NetDialContext: b.Machine.Dial, TLSClientConfig: b.tls,
		Subprotocols: []string{"coracle.console.v1", "coracle.token." + base64.RawURLEncoding.EncodeToString([]byte(b.token))},
	}
	conn, response, err := d.DialContext(b.T.Context(), strings.Replace(b.url, "http", "ws", 1)+"/ws", nil)
	testenv.NoError(b.T, err)
	_ = response.Body.Close()
	b.T.Cleanup(func() { _ = conn.Close() })
	open["id"] = 1
	testenv.NoError(b.T, conn.WriteJSON(open))
	return conn
}

// until reads a stream's messages until one of them satisfies f.
func (b *browser) until(conn *websocket.Conn, what string, f func(m map[string]any, text string) bool) {
	b.T.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(longer))
	var all strings.Builder
	harness.Eventually(b.T, longer, what, func() error {
		_, text, err := conn.ReadMessage()
		if err != nil {
			b.T.Fatalf("%s: %v; until then:\n%s", what, err, all.String())
		}
		fmt.Fprintf(&all, "%s\n", text)
		var m map[string]any
		testenv.NoError(b.T, json.Unmarshal(text, &m))
		testenv.Require(b.T, m["type"] != "end" || m["code"] == 0.0, "%s: the stream ended: %s", what, text)
		if !f(m, string(text)) {
			return fmt.Errorf("not yet: %s", text)
		}
		return nil
	})
}

// webConsole: a browser of coracle console creates a pod, sees it run, reads its log, runs a command in it, changes
// and deletes it.
func webConsole(k *harness.Kube) {
	b := newBrowser(k)
	if code, page := b.try(http.MethodGet, "/", nil); code != http.StatusOK || !strings.Contains(page, "main.js") {
		k.T.Errorf("the page is %d %s", code, page)
	}
	harness.Eventually(k.T, soon, "the session has a user", func() error { // a busy server may be late for the first connection
		if code, text := b.try(http.MethodGet, "/session", nil); !strings.Contains(text, `"user":"`) {
			return fmt.Errorf("it is %d %s", code, text)
		}
		return nil
	})
	code, servers := b.try(http.MethodGet, "/k8s/coracle/status", nil)
	if code != http.StatusOK || !strings.Contains(servers, `"role":"leader"`) || !strings.Contains(servers, `"API server"`) || !strings.Contains(servers, `"store":{"live":`) ||
		!strings.Contains(servers, `"networkBackend":"`) || !strings.Contains(servers, `"snapshots":{`) {
		k.T.Errorf("the servers are %d %s", code, servers)
	}
	if code, text := b.try(http.MethodGet, "/helm?namespace="+k.NS, nil); code != http.StatusOK || !strings.Contains(text, `"releases":[]`) {
		k.T.Errorf("the releases are %d %s", code, text)
	}
	namespace := k.NS
	pods := "/api/v1/namespaces/" + namespace + "/pods"
	list := b.stream(map[string]any{"op": "list", "path": pods})
	b.until(list, "the list is whole", func(m map[string]any, _ string) bool { return m["type"] == "synced" })

	var applied struct {
		Results []struct{ Kind, Name, Action, Message string }
	}
	const pod = `{apiVersion: v1, kind: Pod, metadata: {name: talker}, spec: {terminationGracePeriodSeconds: 1, containers: [{name: box, image: ` + harness.BoxImage +
		`, imagePullPolicy: Never, command: [sh, -c, "echo said; exec testbox hold"]}]}}`
	b.post("/apply", map[string]any{"yaml": "# two\n---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: words}, data: {a: b}}\n---\n" + pod, "namespace": namespace}, &applied)
	if r := applied.Results; len(r) != 2 || r[0].Action != "created" || r[1].Action != "created" {
		k.T.Errorf("what was created: %+v", r)
	}
	b.until(list, "the pod runs", func(m map[string]any, text string) bool {
		return m["type"] == "changes" && strings.Contains(text, "talker") && strings.Contains(text, "Running")
	})
	log := b.stream(map[string]any{"op": "log", "path": pods + "/talker/log", "query": map[string]string{"follow": "true", "timestamps": "true"}})
	b.until(log, "the log", func(_ map[string]any, text string) bool { return strings.Contains(text, "Z said") })

	shell := b.stream(map[string]any{"op": "exec", "path": pods + "/talker/exec", "query": map[string]string{"container": "box"}, "command": []string{"sh"}, "tty": true})
	// A terminal's size and its input have streams of their own: either may come first.
	for _, m := range []map[string]any{{"op": "resize", "cols": 91, "rows": 27}, {"op": "stdin", "data": "until stty size | grep -q '27 91'; do :; done; exit 3\n"}} {
		m["id"] = 1
		testenv.NoError(k.T, shell.WriteJSON(m))
	}
	b.until(shell, "the shell exits when its terminal has that size", func(m map[string]any, _ string) bool {
		return m["type"] == "exit" && m["exit"] == 3.0
	})

	var object struct{ YAML string }
	words := "/api/v1/namespaces/" + namespace + "/configmaps/words"
	_, text := b.try(http.MethodGet, "/object?path="+words, nil)
	if err := json.Unmarshal([]byte(text), &object); err != nil || strings.Contains(text, "managedFields") {
		k.T.Errorf("the object is %s: %v", text, err)
	}
	edit := map[string]any{"path": words, "base": object.YAML, "text": strings.Replace(object.YAML, "a: b", "a: c", 1), "dryRun": true}
	var edited struct{ YAML, Diff string }
	b.post("/edit", edit, &edited)
	testenv.Contains(k.T, edited.Diff, "-  a: b\n+  a: c\n", "the difference is")
	k.Await(soon, "configmap/words", "{.data.a}", "b") // that was a dry run
	k.Kubectl("patch", "configmap", "words", "-p", `{"data":{"d":"e"}}`)
	edit["dryRun"] = false
	b.post("/edit", edit, &edited)
	k.Await(soon, "configmap/words", "{.data}", `{"a":"c","d":"e"}`)
	edit["text"] = strings.Replace(object.YAML, "a: b", "a: x", 1)
	if code, text := b.try(http.MethodPost, "/edit", edit); code != http.StatusConflict || !strings.Contains(text, "a: c") {
		k.T.Errorf("two who changed the same: %d %s", code, text)
	}

	if code, text := b.try(http.MethodDelete, "/k8s"+pods+"/talker", nil); code != http.StatusOK {
		k.T.Errorf("deleting: %d %s", code, text)
	}
	b.until(list, "the pod is deleted", func(m map[string]any, _ string) bool {
		deleted, _ := m["del"].([]any)
		return len(deleted) > 0
	})
}

// consolePort is where the server of TestOneNode has the console for browsers of other machines.
const consolePort = "8443"

// remoteConsole: a user of the server's console sees what their token lets them see, and nothing without one.
func remoteConsole(k *harness.Kube) {
	ca := testenv.Must(os.ReadFile(filepath.Join(k.DataDir, "server", "tls", "server-ca.crt")))(k.T)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	trust := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	b := &browser{Kube: k, url: "https://" + net.JoinHostPort(k.IP, consolePort), http: http.Client{Transport: &http.Transport{DialContext: k.Machine.Dial, TLSClientConfig: trust}}, tls: trust}
	k.T.Cleanup(b.http.CloseIdleConnections)
	pods := "/api/v1/namespaces/" + k.NS + "/pods"
	if code, text := b.try(http.MethodGet, "/k8s"+pods, nil); code != http.StatusUnauthorized {
		k.T.Errorf("without a token: %d %s", code, text)
	}
	b.token = "abc"
	if code, text := b.try(http.MethodGet, "/session", nil); code != http.StatusUnauthorized {
		k.T.Errorf("with a token that is none: %d %s", code, text)
	}
	if code, text := b.try(http.MethodPost, "/login", map[string]string{"code": ""}); code == http.StatusOK {
		k.T.Errorf("a login without a token: %d %s", code, text)
	}
	harness.Eventually(k.T, soon, "a token", func() error { // a busy server may be too late with an answer
		token, err := k.Run(k.Coracle(), "console", "token", "--kubeconfig", k.Kubeconfig, "--role", "view", "--namespace", k.NS, "--ttl", "10m")
		b.token = strings.TrimSpace(token)
		return err
	})
	if code, text := b.try(http.MethodGet, "/session", nil); code != http.StatusOK || !strings.Contains(text, "system:serviceaccount:coracle-console:console-") {
		k.T.Errorf("the session is %d %s", code, text)
	}
	harness.Eventually(k.T, soon, "the token has its role", func() error { // the API server hears of the binding by a watch
		if code, text := b.try(http.MethodGet, "/k8s"+pods, nil); code != http.StatusOK {
			return fmt.Errorf("the pods are %d %s", code, text)
		}
		return nil
	})
	list := b.stream(map[string]any{"op": "list", "path": pods})
	b.until(list, "the list is whole", func(m map[string]any, _ string) bool { return m["type"] == "synced" })
	for path, want := range map[string]int{
		pods: http.StatusOK, "/coracle/status": http.StatusForbidden,
		"/api/v1/namespaces/default/pods": http.StatusForbidden, "/api/v1/namespaces/" + k.NS + "/secrets": http.StatusForbidden,
	} {
		if code, text := b.try(http.MethodGet, "/k8s"+path, nil); code != want {
			k.T.Errorf("GET %s: %d %s, want %d", path, code, text, want)
		}
	}
	if code, text := b.try(http.MethodGet, "/k8s/coracle/namespaces", nil); code != http.StatusOK || strings.TrimSpace(text) != `{"namespaces":["`+k.NS+`"]}` {
		k.T.Errorf("the namespaces are %d %s", code, text)
	}
	// Releases are in Secrets, which this token may not read; it may read ConfigMaps, which have them seldom.
	if code, text := b.try(http.MethodGet, "/helm?namespace="+k.NS, nil); code != http.StatusOK || !strings.Contains(text, `"releases":[]`) || !strings.Contains(text, "secrets is forbidden") {
		k.T.Errorf("the releases are %d %s", code, text)
	}
	if code, text := b.try(http.MethodGet, "/helm/release?namespace="+k.NS+"&name=web", nil); code != http.StatusForbidden {
		k.T.Errorf("a release is %d %s", code, text)
	}
	if code, text := b.try(http.MethodDelete, "/k8s"+pods+"/none", nil); code != http.StatusForbidden {
		k.T.Errorf("deleting: %d %s", code, text)
	}
}
