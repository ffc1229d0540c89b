// SPDX-License-Identifier: Apache-2.0

package profiling_test

import (
	"compress/gzip"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/cmd/coracle/cli/profiling"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// ask sends a question straight to the handler.
func ask(ctx context.Context, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	profiling.Handler().ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, path, nil))
	return w
}

// unpacked is the protocol buffer inside a profile.
func unpacked(t *testing.T, w *httptest.ResponseRecorder) string {
	t.Helper()
	testenv.Require(t, w.Code == http.StatusOK, "code %d: %s", w.Code, w.Body)
	z := testenv.Must(gzip.NewReader(w.Body))(t)
	text := testenv.Must(io.ReadAll(z))(t)
	return string(text)
}

// waitHere is a goroutine whose name a test can look for.
func waitHere(c chan struct{}) { <-c }

func TestStacksAreListedAndGrouped(t *testing.T) {
	c := make(chan struct{})
	defer close(c)
	for range 3 {
		go waitHere(c)
	}
	testenv.Until(t, 2*time.Minute, "the stacks of the three goroutines that wait", func() bool {
		return strings.Count(ask(t.Context(), profiling.StacksPath).Body.String(), "[chan receive]:\ngithub.com/coracle-k8s/coracle/cmd/coracle/cli/profiling_test.waitHere") >= 3
	})
	grouped := ask(t.Context(), profiling.StacksPath+"?grouped=true").Body.String()
	if n := strings.Count(grouped, "profiling_test.waitHere+0x"); n != 1 || !strings.Contains(grouped, "\n3 @") {
		t.Errorf("%d groups of 1 with three goroutines in:\n%s", n, grouped)
	}
}

// held keeps what a test allocates from being collected.
var held [][]byte

func allocate() {
	for range 64 {
		held = append(held, make([]byte, 1<<20)) // larger than the sampling's mean distance: each is in the profile
	}
}

func TestHeapProfileNamesTheHolder(t *testing.T) {
	allocate()
	defer func() { held = nil }()
	if text := unpacked(t, ask(t.Context(), profiling.HeapPath)); !strings.Contains(text, "profiling_test.allocate") || !strings.Contains(text, "inuse_space") {
		t.Error("the profile does not name the function that holds 64 MB")
	}
}

func TestHeapWithoutSamples(t *testing.T) {
	rate := runtime.MemProfileRate
	defer func() { runtime.MemProfileRate = rate }()
	runtime.MemProfileRate = 0
	if w := ask(t.Context(), profiling.HeapPath); w.Code != http.StatusConflict || !strings.Contains(w.Body.String(), "GODEBUG=memprofilerate=0") {
		t.Errorf("code %d: %s", w.Code, w.Body)
	}
}

func TestProcessorProfileTakesOneToSixHundredSeconds(t *testing.T) {
	testenv.True(t, strings.Contains(unpacked(t, ask(t.Context(), profiling.ProfilePath+"?seconds=1")), "nanoseconds"), "the profile has no processor time")
	for _, query := range []string{"", "?seconds=0", "?seconds=x", "?seconds=601", "?seconds=-3"} {
		if w := ask(t.Context(), profiling.ProfilePath+query); w.Code != http.StatusBadRequest || !strings.Contains(w.Body.String(), "from 1 to 600 seconds") {
			t.Errorf("%q: code %d, %s", query, w.Code, w.Body)
		}
	}
}

// One profile at a time; one whose asker has gone ends at once, and the next may be taken.
func TestProfileEndsWithItsAsker(t *testing.T) {
	srv := httptest.NewServer(profiling.Handler())
	defer srv.Close()
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	req := testenv.Must(http.NewRequestWithContext(ctx, http.MethodGet, srv.URL+profiling.ProfilePath+"?seconds=600", nil))(t)
	first, err := srv.Client().Do(req) // returns when the profile has begun
	testenv.NoError(t, err)
	defer first.Body.Close()
	if w := ask(t.Context(), profiling.ProfilePath+"?seconds=1"); w.Code != http.StatusConflict || !strings.Contains(w.Body.String(), "another client") {
		t.Errorf("a second profile while the first is taken: code %d, %s", w.Code, w.Body)
	}
	leave()
	testenv.Until(t, 2*time.Minute, "the profile ends with its asker", func() bool { return ask(t.Context(), profiling.ProfilePath+"?seconds=1").Code == http.StatusOK })
}
