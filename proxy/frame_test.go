// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"maps"
	"testing"

	"github.com/coracle-k8s/coracle/internal/nfttable"
)

// TestFrame: what another program took out between the writing and the counting is not taken for what was written, and what it did during the counting, so that there is no count, has nothing forgotten.
func TestFrame(t *testing.T) {
	counts := func(n int) frame { return frame{nfttable.Table{Name: "kube-proxy"}: {"services": n}} }
	b := &nftables{}
	for i, step := range []struct{ counted, want frame }{
		{nil, nil}, {counts(2), counts(2)}, {counts(2), counts(2)}, {counts(0), counts(2)}, {counts(2), counts(2)}, {counts(3), counts(2)}, {counts(3), counts(3)}, {nil, counts(3)},
	} {
		if b.learn(step.counted); !maps.EqualFunc(b.frame, step.want, maps.Equal) {
			t.Errorf("step %d: it is %v, want %v", i, b.frame, step.want)
		}
	}
}
