// SPDX-License-Identifier: Apache-2.0

package console

import (
	"testing"

	"github.com/gorilla/websocket"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestListIsWholeAndTabsEnd: a list of several pages is whole, and the last tab has left.
func TestListIsWholeAndTabsEnd(t *testing.T) {
	ended := make(chan struct{}, 9)
	s := consoleOf(t, tableAPI(t), func(o *Options) { o.Ended = func() { ended <- struct{}{} } })
	first, _ := tab(t, s, "good", nil)
	second, _ := tab(t, s, "good", nil)
	list := func(conn *websocket.Conn, query map[string]string, messages ...string) {
		testenv.NoError(t, conn.WriteJSON(pageMessage{ID: 1, Op: "list", Path: "/api/v1/pods", Query: query}))
		for _, m := range messages {
			next(t, conn, m)
		}
	}
	list(first, nil, "columns", "rows", "rows", "synced")
	testenv.True(t, len(ended) == 1, "a list of two pages has ended %d times", len(ended))
	<-ended
	list(second, map[string]string{"continue": "c"}, "columns", "rows", "synced")
	_ = first.Close()
	_ = second.Close()
	<-ended
	testenv.True(t, len(ended) == 0, "work has ended %d more times", len(ended))
}
