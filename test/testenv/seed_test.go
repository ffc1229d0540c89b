// SPDX-License-Identifier: Apache-2.0

package testenv_test

import (
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestSeedIsTheSameInEachRun(t *testing.T) {
	t.Setenv(testenv.SeedVar, "")
	t.Setenv(testenv.RandomVar, "")
	if a, b := testenv.Seed(t), testenv.Seed(t); a != b {
		t.Errorf("two seeds: %d and %d", a, b)
	}
	t.Run("part", func(part *testing.T) {
		if testenv.Seed(part) == testenv.Seed(t) {
			t.Error("two tests have one seed")
		}
	})
	t.Setenv(testenv.RandomVar, "1")
	if a, b := testenv.Seed(t), testenv.Seed(t); a == b {
		t.Errorf("%s draws %d twice", testenv.RandomVar, a)
	}
	t.Setenv(testenv.SeedVar, "7")
	if got := testenv.Seed(t); got != 7 {
		t.Errorf("got %d, want the seed that was given", got)
	}
}
