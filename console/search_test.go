// SPDX-License-Identifier: Apache-2.0

package console

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/gorilla/websocket"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// searchAPI has pods in two pages, Secrets that may not be read, and a kind that fails.
func searchAPI(t *testing.T, most *atomic.Int64) http.HandlerFunc {
	t.Helper()
	var now atomic.Int64
	return func(w http.ResponseWriter, r *http.Request) {
		if n := now.Add(1); n > most.Load() {
			most.Store(n)
		}
		defer now.Add(-1)
		if r.Header.Get("Accept") != asMetadata || r.URL.Query().Get("limit") != "500" {
			t.Errorf("%s asks for %q", r.URL, r.Header.Get("Accept"))
		}
		switch r.URL.Path {
		case "/api/v1/pods":
			if r.URL.Query().Get("continue") == "" {
				_, _ = io.WriteString(w, `{"metadata":{"continue":"more"},"items":[{"metadata":{"name":"db","namespace":"a","labels":{"app":"Web"}}},{"metadata":{"name":"other","namespace":"a"}}]}`)
				return
			}
			_, _ = io.WriteString(w, `{"items":[{"metadata":{"name":"my-WEB-1","namespace":"b","creationTimestamp":"2026-01-01T00:00:00Z"}}]}`)
		case "/api/v1/secrets":
			w.WriteHeader(http.StatusForbidden)
		case "/api/v1/many":
			items := make([]string, maxFound+100)
			for i := range items {
				items[i] = fmt.Sprintf(`{"metadata":{"name":"web-%d"}}`, i)
			}
			_, _ = io.WriteString(w, `{"metadata":{"continue":"more"},"items":[`+strings.Join(items, ",")+`]}`)
		default:
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}
}

// searchFor returns what a search finds, what it says is wrong, and how it ends.
func searchFor(t *testing.T, conn *websocket.Conn, id int64, text string, paths ...string) (all []map[string]any, trouble string, last, end map[string]any) {
	t.Helper()
	testenv.NoError(t, conn.WriteJSON(pageMessage{ID: id, Op: "search", Query: map[string]string{"text": text}, Paths: paths}))
	for {
		var m map[string]any
		testenv.NoError(t, conn.ReadJSON(&m))
		if m["type"] == "end" {
			return all, trouble, last, m
		}
		last = m
		rows, _ := m["found"].([]any)
		for _, r := range rows {
			row, _ := r.(map[string]any)
			all = append(all, row)
		}
		if text, isText := m["trouble"].(string); isText {
			trouble += text
		}
	}
}

// An attacker who is a user searches over everything; the API must not get more requests at once than the bound, nor
// one for what is no list.
func TestSearchIsBounded(t *testing.T) {
	var most atomic.Int64
	s := consoleOf(t, searchAPI(t, &most))
	conn, _ := tab(t, s, "good", nil)
	all, trouble, last, end := searchFor(t, conn, 1, " web ", "/api/v1/pods", "/api/v1/secrets")
	if len(all) != 2 || all[0]["label"] != "app=Web" || all[1]["name"] != "my-WEB-1" || all[1]["path"] != "/api/v1/pods" || all[1]["ns"] != "b" {
		t.Errorf("it finds %v", all)
	}
	testenv.False(t, trouble != "" || last["done"] != 2.0 || last["of"] != 2.0 || end["code"] != 0.0, "%q, %v, %v", trouble, last, end)
	if all, trouble, _, _ = searchFor(t, conn, 2, "web", "/api/v1/broken"); len(all) != 0 || !strings.Contains(trouble, "503") {
		t.Errorf("a kind that fails: %v, %q", all, trouble)
	}
	paths := make([]string, 100)
	for i := range paths {
		paths[i] = "/api/v1/many"
	}
	all, _, last, end = searchFor(t, conn, 3, "web", paths...)
	testenv.True(t, len(all) == maxFound && last["full"] == true && end["code"] == 0.0, "it finds %d, and says %v, %v", len(all), last, end)
	testenv.False(t, most.Load() > searchRequests, "%d requests at once", most.Load())
	for i, bad := range [][]string{{""}, append([]string{"web"}, make([]string, maxSearchPaths+1)...)} {
		if _, _, _, end = searchFor(t, conn, 4+int64(i), bad[0], bad[1:]...); end["code"] != 400.0 {
			t.Errorf("a search that is none ends with %v", end)
		}
	}
	// What is no list of the API's is not asked for.
	all, _, _, _ = searchFor(t, conn, 6, "web", "/api/v1/namespaces/a/services/b/proxy", "/debug/pprof", "/api/../pods")
	testenv.True(t, len(all) == 0, "paths that are refused: %v", all)
}

// TestNewSearchEndsTheOlder: a tab has one search; the older one asks the API for nothing more.
func TestNewSearchEndsTheOlder(t *testing.T) {
	arrived, ended := make(chan string, 2), make(chan struct{})
	s := consoleOf(t, func(w http.ResponseWriter, r *http.Request) {
		arrived <- r.URL.Path
		if strings.HasSuffix(r.URL.Path, "/pods") {
			<-r.Context().Done()
			close(ended)
			return
		}
		_, _ = io.WriteString(w, `{"items":[]}`)
	})
	conn, _ := tab(t, s, "good", nil)
	for i, path := range []string{"/api/v1/pods", "/api/v1/nodes"} {
		m := pageMessage{ID: int64(i + 1), Op: "search", Query: map[string]string{"text": "web"}, Paths: []string{path}}
		testenv.NoError(t, conn.WriteJSON(m))
		testenv.Equal(t, <-arrived, path, "the API is asked for")
	}
	<-ended
	for {
		var m map[string]any
		testenv.NoError(t, conn.ReadJSON(&m))
		testenv.True(t, m["id"] == 2.0, "the older search sends %v", m)
		if m["type"] == "end" {
			break
		}
	}
}
