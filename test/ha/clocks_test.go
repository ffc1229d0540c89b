//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// guestPatience is how long something may take that takes half a minute: system calls are ten times slower in a guest.
const guestPatience = 10 * time.Minute

// TestServersWithoutClockBatteries: three servers on machines whose clocks have no battery. They begin in 1970, become
// a cluster at the time at which the program was built, and NTP sets their clocks right. Then all lose their power at
// once, and come back in other orders: all in 1970; then one in 1970, one right, one weeks behind. Each time they
// become one cluster with all that was acknowledged, no clock is behind the newest time that its machine has seen, and
// none was set forward beyond that.
func TestServersWithoutClockBatteries(t *testing.T) {
	harness.SkipUnlessWhole(t, "it takes many minutes, for system calls are slow in such a machine")
	g := newGuests(t)
	no := time.Unix(100, 0) // what a clock without a battery shows
	first := g.add(1, "server", "")
	first.boot(no)
	c := &Cluster{T: t, Site: g.site}
	var token string
	g.await("the first server has a token and a kubeconfig", first, func() error {
		data, err := os.ReadFile(first.reads("token"))
		if err != nil {
			return err
		}
		token = strings.TrimSpace(string(data))
		c.config, err = clientcmd.BuildConfigFromFlags("", first.reads("kubeconfig"))
		return err
	})
	all := []*guest{first}
	for n := 2; n <= 3; n++ {
		x := g.add(n, "server", fmt.Sprintf("--server https://%s:6443 --token %s", first.IP, token))
		x.boot(no)
		all = append(all, x)
	}
	g.cluster(c, all, "all began in 1970")
	for _, x := range all {
		x.shows(time.Now().Add(-365*24*time.Hour), time.Now().Add(time.Hour)) // when the program was built
	}

	right := time.Now().Add(20 * 24 * time.Hour).Truncate(time.Second)
	testenv.NoError(t, os.WriteFile(filepath.Join(g.shared, "step"), []byte(right.UTC().Format("2006-01-02T15:04:05")), 0o600))
	for _, x := range all {
		g.await(x.Name+": its clock was set right", x, func() error { return x.between(right, right.Add(2*time.Hour)) })
	}
	g.cluster(c, all, "NTP has set the clocks")

	cut := func() {
		for _, x := range all {
			x.PowerOff()
		}
	}
	cut()
	testenv.NoError(t, os.Remove(filepath.Join(g.shared, "step"))) // NTP does not answer any more
	for _, x := range slices.Backward(all) {
		x.boot(no)
	}
	g.cluster(c, all, "all came back in 1970")
	for _, x := range all {
		x.shows(right, right.Add(4*time.Hour))
	}

	cut()
	all[1].boot(no)
	all[2].boot(right.Add(24 * time.Hour)) // it stood still for no time
	all[0].boot(right.Add(-21 * 24 * time.Hour))
	g.cluster(c, all, "one came back in 1970, one right, one weeks behind")
	for _, x := range all[:2] {
		x.shows(right, right.Add(8*time.Hour))
	}
	all[2].shows(right.Add(24*time.Hour), right.Add(32*time.Hour))
	log, err := os.ReadFile(all[1].reads("log"))
	if n := strings.Count(string(log), "this machine's clock was behind, and was set forward"); err != nil || n != 3 {
		t.Errorf("a machine that came up in 1970 three times said %d times that its clock was set: %v", n, err)
	}
}

// await waits for something on a machine that runs.
func (g *guests) await(what string, x *guest, f func() error) {
	g.t.Helper()
	harness.Eventually(g.t, guestPatience, what, func() error {
		x.Running()
		return f()
	})
}

// between fails unless the machine's clock shows a time between two.
func (x *guest) between(from, to time.Time) error {
	at, err := x.clock()
	if err == nil && (at.Before(from) || at.After(to)) {
		err = fmt.Errorf("the clock of %s shows %v, which is not between %v and %v", x.Name, at, from, to)
	}
	return err
}

// shows waits for an answer of the machine, and fails the test unless its clock shows a time between two.
func (x *guest) shows(from, to time.Time) {
	x.t.Helper()
	var at time.Time
	x.await(x.Name+" tells the time", x, func() (err error) {
		at, err = x.clock()
		return err
	})
	testenv.True(x.t, !at.Before(from) && !at.After(to), "the clock of %s shows %v, which is not between %v and %v", x.Name, at, from, to)
}

// cluster waits until the machines are one cluster: all are behind the Service kubernetes, each takes a write, and each
// has all writes, those of before too.
func (g *guests) cluster(c *Cluster, all []*guest, what string) {
	g.t.Helper()
	began := time.Now()
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(what))
	var want []string
	for _, x := range all {
		want = append(want, x.IP)
	}
	for _, x := range all {
		api := c.Client(g.from, x.IP+":6443", 30*time.Second)
		g.await(what+": "+x.Name+" takes a write", x, func() error {
			object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name + "-" + x.Name}}
			_, err := api.CoreV1().ConfigMaps("default").Create(g.t.Context(), object, metav1.CreateOptions{})
			return unlessThere(err)
		})
		g.written = append(g.written, name+"-"+x.Name)
	}
	for _, x := range all {
		api := c.Client(g.from, x.IP+":6443", 30*time.Second)
		g.await(what+": "+x.Name+" has all writes", x, func() error {
			list, err := api.CoreV1().ConfigMaps("default").List(g.t.Context(), metav1.ListOptions{})
			if err != nil {
				return err
			}
			for _, w := range g.written {
				if !slices.ContainsFunc(list.Items, func(m corev1.ConfigMap) bool { return m.Name == w }) {
					return fmt.Errorf("%s is not there", w)
				}
			}
			return nil
		})
		g.await(what+": all are behind the Service kubernetes", x, func() error {
			slice, err := api.DiscoveryV1().EndpointSlices("default").Get(g.t.Context(), "kubernetes", metav1.GetOptions{})
			if err != nil {
				return err
			}
			var got []string
			for _, e := range slice.Endpoints {
				if *e.Conditions.Ready {
					got = append(got, e.Addresses...)
				}
			}
			if slices.Sort(got); !slices.Equal(got, want) {
				return fmt.Errorf("behind it are %v, want %v", got, want)
			}
			return nil
		})
	}
	g.t.Logf("%s: one cluster after %v", what, time.Since(began).Round(time.Second))
}
