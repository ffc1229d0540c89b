// SPDX-License-Identifier: Apache-2.0

package console

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// tableAPI answers a list of two pages, and a watch with the given events; after them it is open until the client goes.
func tableAPI(t *testing.T, events ...string) http.HandlerFunc {
	t.Helper()
	const columns = `"columnDefinitions":[{"name":"Name","type":"string"}]`
	return func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		switch {
		case q.Get("watch") == "true":
			if q.Get("resourceVersion") == "1" {
				_, _ = io.WriteString(w, `{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old"}}`)
				return
			}
			for _, e := range events {
				_, _ = io.WriteString(w, e+"\n")
			}
			w.(http.Flusher).Flush() //nolint:forcetypeassert // the server's own
			<-r.Context().Done()
		case q.Get("continue") == "":
			_, _ = io.WriteString(w, `{"kind":"Table","metadata":{"resourceVersion":"7","continue":"c","remainingItemCount":1},`+columns+`,"rows":[{"cells":["a"],"object":{"metadata":{"name":"a","uid":"1","managedFields":[{"manager":"x"}]}}}]}`)
		default:
			_, _ = io.WriteString(w, `{"kind":"Table","metadata":{"resourceVersion":"7"},`+columns+`,"rows":[{"cells":["b"],"object":{"metadata":{"name":"b","uid":"2"}}}]}`)
		}
	}
}

func TestListComesInPagesAndThenItsChanges(t *testing.T) {
	s := consoleOf(t, tableAPI(t,
		`{"type":"MODIFIED","object":{"kind":"Table","columnDefinitions":[{"name":"Name","type":"string"}],"rows":[{"cells":["b2"],"object":{"metadata":{"name":"b","uid":"2","resourceVersion":"8"}}}]}}`,
		`{"type":"DELETED","object":{"kind":"Table","rows":[{"cells":["a"],"object":{"metadata":{"name":"a","uid":"1","resourceVersion":"9"}}}]}}`))
	conn, _ := tab(t, s, "good", nil)
	testenv.NoError(t, conn.WriteJSON(pageMessage{ID: 1, Op: "list", Path: "/api/v1/pods"}))
	next(t, conn, "columns")
	testenv.Equal(t, next(t, conn, "rows")["remaining"], 1.0, "the first page is")
	next(t, conn, "rows")
	testenv.Equal(t, next(t, conn, "synced")["rv"], "7", "the list ends with")
	next(t, conn, "state")
	var all []string // what is gathered is one message, or two where a busy machine has stood still between the events
	for rv := any(""); rv != "9"; {
		m := next(t, conn, "changes")
		rv = m["rv"]
		for _, key := range []string{"set", "del"} {
			if some, _ := m[key].([]any); len(some) > 0 {
				all = append(all, key+" "+string(testenv.Must(json.Marshal(some))(t)))
			}
		}
	}
	testenv.EqualSlices(t, all, []string{`set [{"cells":["b2"],"name":"b","uid":"2"}]`, `del ["1"]`}, "the changes are")
}

func TestListRestartsWhenItsRevisionIsTooOld(t *testing.T) {
	s := consoleOf(t, tableAPI(t))
	conn, _ := tab(t, s, "good", nil)
	testenv.NoError(t, conn.WriteJSON(pageMessage{ID: 1, Op: "list", Path: "/api/v1/pods", RV: "1"}))
	next(t, conn, "state")
	next(t, conn, "reset")
	next(t, conn, "columns")
	next(t, conn, "rows")
}

func TestForbiddenListEnds(t *testing.T) {
	s := consoleOf(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, `{"kind":"Status","code":403,"reason":"Forbidden","message":"you may not"}`)
	})
	conn, _ := tab(t, s, "good", nil)
	testenv.NoError(t, conn.WriteJSON(pageMessage{ID: 1, Op: "list", Path: "/api/v1/pods"}))
	if m := next(t, conn, "end"); m["code"] != 403.0 || m["message"] != "you may not" {
		t.Errorf("the stream ends with %v", m)
	}
}

// An attacker who has a pod logs a line of 10 MB and bytes that are no text; the console must not send them to a tab.
func TestLongLineOfALogIsCut(t *testing.T) {
	s := consoleOf(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "first\n"+strings.Repeat("x", 10<<20)+"\n\xff\nlast")
	})
	conn, _ := tab(t, s, "good", nil)
	testenv.NoError(t, conn.WriteJSON(pageMessage{ID: 1, Op: "log", Path: "/api/v1/namespaces/a/pods/b/log"}))
	next(t, conn, "state") // the log is open
	var lines []string
	for len(lines) < 4 {
		m := next(t, conn, "lines")
		some, _ := m["lines"].([]any)
		for _, line := range some {
			text, _ := line.(string)
			lines = append(lines, text)
		}
	}
	cut := strings.HasSuffix(lines[1], " … (10420224 more bytes)") && len(lines[1]) <= maxLine+100
	if lines[0] != "first" || !cut || lines[2] != "\uFFFD" || lines[3] != "last" {
		t.Errorf("the lines are %.40q %q… %q %q", lines[0], lines[1][len(lines[1])-40:], lines[2], lines[3])
	}
	testenv.Equal(t, next(t, conn, "end")["code"], 0.0, "the log ends with")
}

func TestObjectThatComesBackIntoASelectionStays(t *testing.T) {
	l, g := &list{columns: []column{{Name: "Name", Type: "string"}}}, pendingChanges{rows: map[string]row{}}
	for _, kind := range []string{"ADDED", "DELETED", "ADDED"} {
		testenv.NoError(t, l.add(event{Type: kind, Object: []byte(`{"kind":"Table","rows":[{"cells":null,"object":{"metadata":{"name":"a","uid":"1","resourceVersion":"5"}}}]}`)}, &g))
	}
	testenv.False(t, len(g.del) != 0 || len(g.rows) != 1 || g.rows["1"].Cells == nil, "%+v", g)
}
