// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestReadsAreBounded: one namespace that names ten thousand missing Secrets costs little, and another's Secret is read
// at once.
func TestReadsAreBounded(t *testing.T) {
	var names []types.NamespacedName
	for i := range 10_000 {
		names = append(names, types.NamespacedName{Namespace: "bad", Name: fmt.Sprintf("s%05d", i)})
	}
	good := types.NamespacedName{Namespace: "good", Name: "z"}
	names = append(names, good)
	var r reads[corev1.Secret]
	all := map[types.NamespacedName]int{}
	gets := 0
	get := func(name types.NamespacedName) *corev1.Secret {
		gets++
		all[name]++
		if name == good {
			return &corev1.Secret{}
		}
		return nil
	}
	at := time.Unix(1_000_000, 0)
	if again := r.sync(at, names, get); gets != maxReads || again != readsPause || r.get(good) == nil {
		t.Fatalf("%d were read, again after %s; the other namespace's is %v", gets, again, r.get(good))
	}
	for range 10 { // changes of Ingresses: only what was never read is
		r.sync(at, names[:100], get)
	}
	testenv.False(t, gets != maxReads, "%d were read again at once", gets-maxReads)
	r = reads[corev1.Secret]{}
	clear(all)
	for i := range len(names)/maxReads + 30 { // those of the good namespace every ten seconds, in between all of the bad one
		at = at.Add(readsPause)
		before := all[good]
		r.sync(at, names, get)
		if i%10 == 0 && all[good] != before+1 {
			t.Errorf("after %d seconds the other namespace's was read %d times", i, all[good])
		}
	}
	testenv.False(t, len(all) != len(names), "%d of %d were ever read", len(all), len(names))
	r.sync(at, nil, get)
	testenv.False(t, r.get(good) != nil, "what no object names any more is remembered")
}
