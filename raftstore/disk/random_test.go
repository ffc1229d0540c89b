// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// randomOf returns the source of a random test: CORACLE_TEST_SEED repeats one.
func randomOf(t *testing.T) *rand.Rand {
	t.Helper()
	return rand.New(rand.NewPCG(testenv.Seed(t), 0))
}

// budget bounds a random test in time: it is long enough for a change that
// breaks something to show soon, and CORACLE_RANDOM_TIME=10m makes it thorough.
type budget struct {
	until  time.Time
	failed bool // what follows is rapid looking for a smaller case
}

func newBudget(t *testing.T, usual time.Duration) *budget {
	t.Helper()
	if text := os.Getenv("CORACLE_RANDOM_TIME"); text != "" {
		var err error
		usual, err = time.ParseDuration(text)
		testenv.NoError(t, err)
	}
	return &budget{until: time.Now().Add(usual)}
}

func (b *budget) spent(t *rapid.T) bool {
	t.Cleanup(func() { b.failed = b.failed || t.Failed() })
	return !b.failed && time.Now().After(b.until)
}
