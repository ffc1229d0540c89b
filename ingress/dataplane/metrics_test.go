// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestRequestsAreCountedByHost(t *testing.T) {
	backend := backendServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/events" {
			w.Header().Set("Content-Type", "text/event-stream")
		}
		if r.URL.Path == "/missing" {
			w.WriteHeader(http.StatusNotFound)
		}
	})
	changes := site(t, "", backend)
	changes[0].Key = table.HostKey("s", "a.example")
	f := newFixture(t, Options{}, changes...)
	c := client(t, f.http, "http1")
	for _, path := range []string{"a.example/", "A.example./missing", "a.example/events", "b.example/"} {
		_, _ = get(t, c, "http://"+path)
	}
	f.Apply(changes[:1]) // counters outlive a change
	counted := func() map[string]table.HostStats {
		out := map[string]table.HostStats{}
		for _, h := range f.Report().Hosts {
			out[h.Site+"/"+h.Host] = h
		}
		return out
	}
	waitUntil(t, "all are counted", func() bool { return counted()["s/a.example"].Requests == [6]uint64{2: 2, 4: 1} })
	got := counted()
	sum := uint64(0)
	for _, n := range got["s/a.example"].Durations {
		sum += n
	}
	if sum != 2 { // the stream is none
		t.Errorf("the histogram has %d requests: %v", sum, got["s/a.example"])
	}
	testenv.False(t, got["/other"].Requests != [6]uint64{4: 1}, "requests to unknown hosts: %v", got["/other"])
	f.Apply([]table.Change{{Key: changes[0].Key}})
	if _, ok := counted()["s/a.example"]; ok {
		t.Error("a host that is gone is reported")
	}
}

func TestCountedHostsAreBounded(t *testing.T) {
	f := newFixture(t, Options{})
	var changes []table.Change
	for i := range 2 * table.MaxCountedHosts {
		changes = append(changes, section(t, table.HostKey("s", fmt.Sprint("h", i)), table.Host{}))
	}
	f.Apply(changes)
	testenv.Equal(t, len(f.Report().Hosts), table.MaxCountedHosts+1, "hosts are reported:")
}

func TestDurationsAreCountedByBuckets(t *testing.T) {
	s := &hostStats{}
	for _, took := range []time.Duration{0, 5 * time.Millisecond, 6 * time.Millisecond, 10 * time.Second, time.Hour} {
		s.count(200, took, false)
	}
	testenv.Equal(t, s.read("", "").Durations, [12]uint64{2, 1, 10: 1, 11: 1}, "")
}
