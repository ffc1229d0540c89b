// SPDX-License-Identifier: Apache-2.0

package testenv

import "testing"

func TestSeedIsTheSameInEachRun(t *testing.T) {
	t.Setenv(SeedVar, "")
	t.Setenv(RandomVar, "")
	if a, b := Seed(t), Seed(t); a != b {
		t.Errorf("two seeds: %d and %d", a, b)
	}
	t.Run("part", func(part *testing.T) {
		if Seed(part) == Seed(t) {
			t.Error("two tests have one seed")
		}
	})
	t.Setenv(RandomVar, "1")
	if a, b := Seed(t), Seed(t); a == b {
		t.Errorf("%s draws %d twice", RandomVar, a)
	}
	t.Setenv(SeedVar, "7")
	if got := Seed(t); got != 7 {
		t.Errorf("got %d, want the seed that was given", got)
	}
}
