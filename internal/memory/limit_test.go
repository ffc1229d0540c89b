// SPDX-License-Identifier: Apache-2.0

package memory_test

import (
	"math"
	"runtime/debug"
	"testing"

	"github.com/coracle-k8s/coracle/internal/memory"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestHeapLimitFitsMachineAndGroup(t *testing.T) {
	const mb = 1 << 20
	for _, c := range []struct{ machine, group, want int64 }{
		{24000, 0, 12000},
		{512, 0, 256},
		{128, 0, 96}, // a server does not fit: the collector is not made to run all the time
		{24000, 128, 96},
		{24000, 192, 120},
		{24000, 224, 140},
		{24000, 512, 320},
		{24000, 2048, 1792},
		{1024, 4096, 512}, // a group's limit above the machine's memory is none
	} {
		l := memory.Limit{Machine: c.machine * mb, Group: c.group * mb}
		if got := memory.HeapLimit(l) / mb; got != c.want {
			t.Errorf("machine %d MB, group %d MB: %d MB, want %d", c.machine, c.group, got, c.want)
		}
	}
}

func TestFitKeepsOperatorsLimit(t *testing.T) {
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(-1))
	l := memory.Limit{Machine: 8 << 30, Group: 200 << 20, Bytes: 200 << 20}
	if !memory.Tight(l) || memory.Tight(memory.Limit{Machine: 8 << 30}) || memory.Tight(memory.Limit{Machine: 8 << 30, Group: 1 << 30}) {
		t.Error("what is tight and what is not was taken for one another")
	}
	t.Setenv("GOMEMLIMIT", "1GiB")
	if err := memory.Fit(l); err != nil || debug.SetMemoryLimit(-1) != math.MaxInt64 {
		t.Errorf("the operator's own limit was overridden: %v", err)
	}
	t.Setenv("GOMEMLIMIT", "")
	testenv.NoError(t, memory.Fit(l))
	if got, want := debug.SetMemoryLimit(-1), memory.HeapLimit(l); got != want {
		t.Errorf("the limit is %d, want %d", got, want)
	}
}
