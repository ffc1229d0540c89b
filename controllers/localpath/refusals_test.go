// SPDX-License-Identifier: Apache-2.0

package localpath

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

func TestRefusalsAreForgottenAndBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRefusals(time.Now)
		expectRefusal := func(claim types.UID, node string, want time.Duration, lately bool) {
			t.Helper()
			if got, ok := r.Since(claim, node); got != want || ok != lately {
				t.Errorf("%s refused %s %v ago, %v", node, claim, got, ok)
			}
		}
		expectRefusal("data", "a", 0, false)
		r.add("data", "a")
		time.Sleep(time.Minute) // fake time
		r.add("data", "b")
		expectRefusal("data", "a", time.Minute, true)
		expectRefusal("data", "b", 0, true)
		expectRefusal("logs", "a", 0, false)
		time.Sleep(refusalsLast - time.Minute) // fake time
		expectRefusal("data", "a", 0, false)
		expectRefusal("data", "b", refusalsLast-time.Minute, true)
		r.add("data", "b")
		expectRefusal("data", "b", 0, true)
		time.Sleep(time.Second) // fake time
		for i := range refusalsMost - 1 {
			r.add(types.UID(fmt.Sprint(i)), "a")
		}
		expectRefusal("data", "b", time.Second, true) // one that is over was forgotten for the last of these
		time.Sleep(time.Second)                       // fake time
		r.add("data", "c")
		expectRefusal("data", "b", 0, false)
		if expectRefusal("data", "c", 0, true); len(r.times) != refusalsMost {
			t.Errorf("it keeps %d", len(r.times))
		}
	})
	var none *Refusals
	none.add("data", "a")
	if _, ok := none.Since("data", "a"); ok {
		t.Error("nothing is remembered, and there is a refusal")
	}
}

// TestOnlyNodesRefusalIsRecorded: what a node refuses is noted, and what no node can be asked for is not.
func TestOnlyNodesRefusalIsRecorded(t *testing.T) {
	f := newFixture(t, "n1")
	f.o.Refusals = NewRefusals(time.Now)
	refused := func() bool {
		_, ok := f.o.Refusals.Since(uid, "n1")
		return ok
	}
	if _, err := f.provision(t, claim(), map[string]string{"pathPattern": "x"}, "n1"); err == nil || refused() {
		t.Errorf("a parameter that is not supported: %v, and the node is to be avoided: %v", err, refused())
	}
	if _, err := f.provision(t, claim(), nil, "n1"); err != nil || refused() {
		t.Errorf("a volume that is made: %v, and the node is to be avoided: %v", err, refused())
	}
	f.nodes.fails = errors.New("no room")
	if _, err := f.provision(t, claim(), nil, "n1"); err == nil || !refused() {
		t.Errorf("no room: %v, and the node is to be avoided: %v", err, refused())
	}
	f.o.Refusals = NewRefusals(time.Now)
	f.nodes.setAway("n1", true)
	if _, err := f.provision(t, claim(), nil, "n1"); !errors.Is(err, ErrAway) || !refused() {
		t.Errorf("a node that is away: %v, and is to be avoided: %v", err, refused())
	}
	f.o.Refusals = NewRefusals(time.Now)
	over, end := context.WithCancel(t.Context())
	end()
	f.o.Context = over
	if _, err := f.provision(t, claim(), nil, "n1"); err == nil || refused() {
		t.Errorf("the term is over: %v, and the node is to be avoided: %v", err, refused())
	}
}
