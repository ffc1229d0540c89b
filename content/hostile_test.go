// SPDX-License-Identifier: Apache-2.0

package content

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// get sends a request to another machine, and returns the status and the body.
func (m *testMachine) get(to, path string) (int, string) {
	m.c.t.Helper()
	r := testenv.Must(http.NewRequestWithContext(context.Background(), http.MethodGet, "https://"+to+path, nil))(m.c.t)
	answer := testenv.Must(m.client.direct.Do(r))(m.c.t)
	defer answer.Body.Close()
	return answer.StatusCode, string(testenv.Must(io.ReadAll(answer.Body))(m.c.t))
}

// TestServerPassesOnlyBlobsOn asks a server for something else than a blob of a node. It would send that request with
// its own certificate, and nodes tell servers what they have.
func TestServerPassesOnlyBlobsOn(t *testing.T) {
	inCluster(t, 2, func(c *testCluster, agents []*testMachine) {
		victim, hostile, server := agents[0], agents[1], c.servers[0]
		path := blobsPath + victim.store.put([]byte("a layer")).String() + "?node="
		for _, node := range []string{victim.name + havePath + "?x=", victim.name + havePath + "#", "a@" + victim.name, "nobody", server} {
			if status, body := hostile.get(server, path+url.QueryEscape(node)); status != http.StatusNotFound {
				t.Errorf("of node %q: %d %q", node, status, body)
			}
		}
		if status, body := hostile.get(server, path+victim.name); status != http.StatusOK || body != "a layer" {
			t.Errorf("of a node: %d %q", status, body)
		}
	})
}

// TestAnswerThatIsNotRead has a machine that does not read an answer, which the server must not keep for ever.
func TestAnswerThatIsNotRead(t *testing.T) {
	inCluster(t, 1, func(c *testCluster, agents []*testMachine) {
		server, ended := c.machines[c.servers[0]], atomic.Bool{}
		names := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, strings.Repeat("name", 1<<18)) // the connection ends before that
			ended.Store(true)
		})
		server.server.names.Store(&names)
		conn := testenv.Must(c.dial(context.Background(), agents[0], server.name, false))(t)
		defer conn.Close()
		_ = testenv.Must(io.WriteString(conn, "GET "+namesPath+" HTTP/1.1\r\nHost: a\r\n\r\n"))(t)
		time.Sleep(time.Minute) // virtual
		if !ended.Load() {
			t.Error("the server still keeps the answer")
		}
	})
}
