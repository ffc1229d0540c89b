// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestUnidentifiedClientsLeaveFewRecords: requests and connections without an identity, of each kind that upstream
// would log one by one, leave few and short lines and audit events, and one record of each that says how many were left
// out. They are refused, and a malformed one ends its connection. What a user does is recorded whole.
func TestUnidentifiedClientsLeaveFewRecords(t *testing.T) {
	f := newFixture(t)
	o := f.options(t)
	o.Profile, o.AuditLog = ProfileCIS, filepath.Join(f.dir, "logs", "audit.log")
	var log testenv.Log
	o.Logger = slog.New(slog.NewTextHandler(&log, nil))
	klog.SetSlogLogger(o.Logger)
	defer klog.ClearLogger()
	stderr := testenv.Must(os.Create(filepath.Join(f.dir, "stderr")))(t)
	defer stderr.Close()
	own := os.Stderr
	os.Stderr = stderr // upstream's HTTP server writes to it
	defer func() { os.Stderr = own }()
	s := f.start(t, o)
	before := len(log.String())

	const requests = 400
	digits := strings.Repeat("7", 7000)
	kinds := []struct {
		path, token string
		want        int
	}{
		{path: "/readyz?timeout=" + digits + "x", want: http.StatusRequestURITooLong},
		{path: "/readyz?timeout=9x", want: http.StatusBadRequest},
		{path: "/api/v1/namespaces/" + digits + "/secrets?timeout=9x", want: http.StatusRequestURITooLong},
		{path: "/api/v1/pods?watch=1&fieldSelector=!!!", want: http.StatusBadRequest},
		{path: "/api/v1/watch", want: http.StatusBadRequest},
		{path: "/api/v1/namespaces/" + digits[:3000] + "/secrets", want: http.StatusUnauthorized},
		{path: "/api/v1/secrets", token: "wrong", want: http.StatusUnauthorized},
		{path: "/api/v1/secrets?watch=1", token: "wrong." + digits[:3000] + ".jwt", want: http.StatusUnauthorized},
	}
	var all sync.WaitGroup
	next := make(chan int)
	var mu sync.Mutex
	wrong := map[string]int{}
	for range 8 {
		c := s.anonymous(t, func(c *tls.Config) { c.ClientSessionCache = tls.NewLRUClientSessionCache(1) })
		all.Go(func() {
			for i := range next {
				k := kinds[i%len(kinds)]
				code, closed, err := getUnidentified(c, s.url+k.path, k.token)
				if err != nil || code != k.want || code != http.StatusUnauthorized && !closed {
					mu.Lock()
					wrong[fmt.Sprintf("%.40s: %d, closed %v, %v", k.path, code, closed, err)]++
					mu.Unlock()
				}
			}
		})
	}
	for i := range requests {
		next <- i
	}
	close(next)
	all.Wait()
	testenv.True(t, len(wrong) == 0, "%v", wrong)
	goAway(t, s, o.Listener.Addr().String())

	admin := testenv.Must(rest.HTTPClientFor(s.admin()))(t)
	const users = 50
	for i := range users {
		answer := testenv.Must(admin.Get(fmt.Sprintf("%s/api/v1/namespaces/of-a-user-%d/secrets?timeout=9x", s.url, i)))(t)
		_ = answer.Body.Close()
		testenv.Equal(t, answer.StatusCode, http.StatusBadRequest, "a user's wrong time limit:")
	}
	s.stop()
	text := log.String()[before:]
	lines := strings.Split(strings.TrimSpace(text), "\n")
	of := func(word string) (n int) {
		for _, l := range lines {
			if strings.Contains(l, word) {
				n++
			}
		}
		return n
	}
	testenv.Equal(t, of("of-a-user-"), users, "lines of a user's requests:")
	testenv.True(t, of("Unable to authenticate") > 0 || of("refused a malformed request") > 0, "no line of the first requests: %s", text)
	others := len(lines) - users
	testenv.True(t, others < 60 && len(text) < 64<<10, "%d lines beside, %d bytes in all:\n%.2000s", others, len(text), text)

	fi := testenv.Must(stderr.Stat())(t)
	testenv.True(t, fi.Size() < 1<<10, "%d bytes on stderr", fi.Size())

	data := testenv.Must(os.ReadFile(o.AuditLog))(t)
	counts, leftOut := map[string]int{}, ""
	for line := range bytes.Lines(data) {
		var e auditv1.Event
		testenv.NoError(t, json.Unmarshal(line, &e), "%s", line)
		switch {
		case e.Annotations[leftOutAnnotation] != "":
			counts["left out"]++
			leftOut = e.Annotations[leftOutAnnotation]
		case strings.Contains(e.RequestURI, "of-a-user"):
			counts["user "+e.User.Username]++
		case e.User.Username == "":
			counts["unidentified"]++
			testenv.True(t, len(line) < 4<<10, "a record of %d bytes", len(line))
		}
	}
	testenv.True(t, maps.Equal(counts, map[string]int{"left out": 1, "user system:admin": users, "unidentified": auditPerSource}),
		"audit events: %v, of %d bytes in all", counts, len(data))
	testenv.Equal(t, leftOut, fmt.Sprint(requests*3/len(kinds)-auditPerSource), "left out:")
}

// getUnidentified makes a request without an identity, or with a token. It says whether the server ends the connection.
func getUnidentified(c *http.Client, url, token string) (code int, closed bool, err error) {
	r, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return 0, false, err
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	answer, err := c.Do(r)
	if err != nil {
		return 0, false, err
	}
	defer answer.Body.Close()
	_, err = io.Copy(io.Discard, answer.Body)
	return answer.StatusCode, answer.Close || slices.Contains(answer.Header["Connection"], "close"), err
}

// goAway sends frames of HTTP/2 that Go's server logs whole.
func goAway(t *testing.T, s *running, address string) {
	t.Helper()
	c := testenv.Must(tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}}))(t)
	defer c.Close()
	testenv.Must(io.WriteString(c, http2.ClientPreface))(t)
	framer := http2.NewFramer(c, c)
	testenv.NoError(t, framer.WriteSettings())
	for range 100 {
		if err := framer.WriteGoAway(0, http2.ErrCodeProtocol, bytes.Repeat([]byte("x"), 200<<10)); err != nil {
			break // the server has closed the connection
		}
	}
	_, _ = io.Copy(io.Discard, c) // until the server has closed it
}
