// SPDX-License-Identifier: Apache-2.0

package testenv

import (
	"hash/fnv"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
)

// The environment variables of Seed.
const (
	// SeedVar gives the seed, to repeat a failure.
	SeedVar = "CORACLE_TEST_SEED"
	// RandomVar has each run draw a seed of its own: make flakes and make soak set it.
	RandomVar = "CORACLE_TEST_RANDOM"
)

// Seed returns the seed of a random test, and logs it. It is the same in each run and differs between tests, so that a
// change of one part never fails at a case of another one that was drawn for the first time.
func Seed(t testing.TB) uint64 {
	t.Helper()
	var seed uint64
	switch given := os.Getenv(SeedVar); {
	case given != "":
		var err error
		if seed, err = strconv.ParseUint(given, 10, 64); err != nil {
			t.Fatalf("%s is no number: %v", SeedVar, err)
		}
	case os.Getenv(RandomVar) != "":
		seed = rand.Uint64()
	default:
		h := fnv.New64a()
		_, _ = h.Write([]byte(t.Name())) // a hash fails never
		seed = h.Sum64()
	}
	t.Logf("%s=%d", SeedVar, seed)
	return seed
}
