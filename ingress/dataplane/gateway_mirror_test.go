// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// mirrorTo is a route to b with mirrors.
func mirrorTo(mirrors ...table.Mirror) table.Route {
	return table.Route{Path: "/", Kind: table.PathPrefix, Backends: to("b"), Policy: &table.Policy{
		Mirrors: mirrors, Path: &table.PathChange{Prefix: true, Value: "/new"}, UpstreamHost: "up.example",
		RequestHeaders: &table.Headers{Set: []table.Header{{Name: "X-Both", Value: "yes"}}},
	}}
}

func all(b table.Backend) table.Mirror { return table.Mirror{Backend: b, Numerator: 1, Denominator: 1} }

// seen collects what a backend gets.
func seen(t testing.TB) (string, chan string) {
	got := make(chan string, 1000)
	return backendServer(t, func(w http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		n, err := io.Copy(sum, r.Body)
		got <- fmt.Sprintf("%s %s %s %s %s %d %x %v", r.Method, r.Host, r.RequestURI, r.Header.Get("X-Both"), r.Header.Get("X-Own"), n, sum.Sum(nil)[:4], err)
		http.Error(w, strings.Repeat("the mirror's answer ", 100_000), http.StatusTeapot)
	}), got
}

func receive1(t testing.TB, from chan string) string {
	t.Helper()
	select {
	case got := <-from:
		return got
	case <-time.After(patience):
		t.Fatal("nothing came within two minutes")
		return ""
	}
}

func TestMirrorsGetCopies(t *testing.T) {
	one, gotOne := seen(t)
	two, gotTwo := seen(t)
	a, b := service("one"), service("two")
	b.Protocol = table.H2C
	b.RequestHeaders = &table.Headers{Set: []table.Header{{Name: "X-Own", Value: "two"}, {Name: "Host", Value: "two.example"}}}
	bad := table.Backend{Invalid: "none"}
	reading := backendServer(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // a mirror gets as much of the body as the backend takes
		showing("b")(w, r)
	})
	f := newFixture(t, Options{}, append(hostWith(t, mirrorTo(all(a), all(b), all(bad))), section(t, to("b")[0].Key(), table.Endpoints{Addresses: []string{reading}}),
		section(t, a.Key(), table.Endpoints{Addresses: []string{one}}), section(t, b.Key(), table.Endpoints{Addresses: []string{two}}))...)
	exchanged{url: "http://a/x?q=1", headers: map[string]string{"X-Show": "Host,X-Both"}, body: "b /new/x?q=1 Host=up.example X-Both=yes"}.check(t, f)
	const nothing = "0 e3b0c442 <nil>"
	if got, want := receive1(t, gotOne), "GET up.example /new/x?q=1 yes  "+nothing; got != want {
		t.Errorf("the first mirror gets %q, want %q", got, want)
	}
	if got, want := receive1(t, gotTwo), "GET two.example /new/x?q=1 yes two "+nothing; got != want {
		t.Errorf("the second mirror gets %q, want %q", got, want)
	}
	text := bytes.Repeat([]byte("0123456789abcdef"), 40_000) // 640 KB
	sum := sha256.Sum256(text)
	for _, chunked := range []bool{false, true} {
		var from io.Reader = bytes.NewReader(text)
		if chunked {
			from = io.MultiReader(from)
		}
		res := testenv.Must(client(t, f.http, "http1").Post("http://a/up", "text/plain", from))(t)
		testenv.Equal(t, body(t, res), "b /new/up", "a POST is answered with")
		want := fmt.Sprintf("%d %x <nil>", len(text), sum[:4])
		for _, got := range []string{receive1(t, gotOne), receive1(t, gotTwo)} {
			testenv.True(t, strings.HasSuffix(got, want), "a mirror gets %q, want %q", got, want)
		}
	}
	waitUntil(t, "nothing is held", func() bool { return f.mirrors.open.Load() == 0 && f.mirrors.memory.Load() == 0 })
	testenv.Equal(t, f.Stats().MirrorsDropped.Load()+f.Stats().MirrorsFailed.Load(), 0, "mirrored requests were dropped or failed:")
}

func TestMirrorsGetTheirShare(t *testing.T) {
	one, got := seen(t)
	b := service("one")
	f := newFixture(t, Options{}, append(hostWith(t, mirrorTo(table.Mirror{Backend: b, Numerator: 1, Denominator: 5})),
		section(t, b.Key(), table.Endpoints{Addresses: []string{one}}))...)
	c := client(t, f.http, "http1")
	for range 100 {
		get(t, c, "http://a/")
	}
	waitUntil(t, "all are sent", func() bool { return f.mirrors.open.Load() == 0 })
	testenv.True(t, len(got) >= 18 && len(got) <= 22, "%d of 100 requests are mirrored, want a fifth", len(got))
}

func TestStuckMirrorsCostNothing(t *testing.T) {
	blocked := make(chan struct{})
	begun := make(chan struct{}, 1000)
	unresponsive := backendServer(t, func(_ http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		select {
		case <-blocked:
		case <-r.Context().Done():
		}
	})
	defer close(blocked)
	hanging, refusing, absent := service("hanging"), service("refusing"), service("absent")
	var sizes []int64
	f := newFixture(t, Options{DrainTimeout: 2 * patience}, append(hostWith(t, mirrorTo(all(hanging), all(refusing), all(absent))),
		section(t, hanging.Key(), table.Endpoints{Addresses: []string{unresponsive}}), section(t, absent.Key(), table.Endpoints{}),
		section(t, refusing.Key(), table.Endpoints{Addresses: []string{closed(t)}}))...)
	c := client(t, f.http, "http1")
	large := bytes.Repeat([]byte("x"), 8<<20) // more than the proxy, the mirror and the kernel hold
	for i := range 200 {
		var from io.Reader
		if i%50 == 49 {
			from = bytes.NewReader(large)
		}
		req, _ := http.NewRequest(http.MethodPost, "http://a/", from)
		res := testenv.Must(c.Do(req))(t)
		if got := body(t, res); got != "b /new/" {
			t.Fatalf("the answer is %q", got)
		}
		sizes = append(sizes, f.mirrors.memory.Load())
		if n := f.mirrors.open.Load(); n > maxMirrors {
			t.Fatalf("%d mirrored requests are under way", n)
		}
	}
	for _, n := range sizes {
		testenv.True(t, n <= maxMirrorMemory, "%d bytes are held for mirrors", n)
	}
	testenv.True(t, f.Stats().MirrorsDropped.Load() != 0, "of 200 requests to a stalled mirror all are held")
	begin := time.Now()
	f.stop()
	if took := time.Since(begin); took > patience {
		t.Errorf("the drain waited %v for mirrors", took)
	}
	if n, held := f.mirrors.open.Load(), f.mirrors.memory.Load(); n != 0 || held != 0 {
		t.Errorf("%d mirrored requests with %d bytes are left", n, held)
	}
}
