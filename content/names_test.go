// SPDX-License-Identifier: Apache-2.0

package content

import (
	"io"
	"net/http"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestOnlyServersNameImages: a node asks for names, and for blobs without a tracker, only machines with a server's
// certificate.
func TestOnlyServersNameImages(t *testing.T) {
	c := newTestCluster(t)
	defer c.end()
	server, node, hostile := c.add("s", true), c.add("n", false), c.add("h", false)
	get := func(from, path string) (code int, text string, err error) {
		answer, err := node.client.Get(t.Context(), from, path)
		if err != nil {
			return 0, "", err
		}
		defer answer.Body.Close()
		data, err := io.ReadAll(answer.Body)
		return answer.StatusCode, string(data), err
	}
	code, _, err := get("s", namesPath)
	testenv.True(t, err == nil && code == http.StatusNotFound, "a server without a node: %d, %v", code, err)
	for _, m := range []*testMachine{server, hostile} {
		names := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, m.name+" "+r.URL.RawQuery) })
		m.server.names.Store(&names)
	}
	d := hostile.store.put([]byte("a blob"))
	server.store.put([]byte("a blob"))
	_, text, err := get("s", namesPath+"?name=a")
	testenv.True(t, err == nil && text == "s name=a", "the server answers %q: %v", text, err)
	_, text, err = get("s", blobsPath+d.String())
	testenv.True(t, err == nil && text == "a blob", "the server sends %q: %v", text, err)

	c.servers = append(c.servers, "h") // as it says in the gossip
	for _, path := range []string{namesPath, blobsPath + d.String()} {
		_, text, err := get("h", path)
		testenv.True(t, err != nil && text == "", "a node's answer to %s was taken: %q", path, text)
	}
	answer := testenv.Must(hostile.client.direct.Get("https://n" + namesPath))(t) // it is no server
	testenv.Equal(t, answer.StatusCode, http.StatusNotFound, "an agent answers")
	testenv.NoError(t, answer.Body.Close())
}
