// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package chaos

import (
	"context"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestMain(m *testing.M) { os.Exit(netns.Main(m)) }

const (
	shortRun  = 75 * time.Second
	roundLong = 75 * time.Second
	clusterOf = 6 // rounds, then a cluster of another size
)

// TestChaos runs rounds of clients and faults for CORACLE_CHAOS_DURATION, from CORACLE_CHAOS_SEED.
func TestChaos(t *testing.T) {
	netns.Require(t)
	long, seed := setting(t)
	t.Logf("seed %d, %v: repeat with make chaos DURATION=%v SEED=%d", seed, long, long, seed)
	dir := testenv.Must(os.MkdirTemp(os.Getenv("CORACLE_TEST_DIR"), "coracle-chaos-"))(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %d failed; kept %s", seed, dir)
			return
		}
		testenv.Check(t, os.RemoveAll(dir))
	})
	bin := buildNode(t, dir) // before the time starts: it is for the faults
	var all totals
	for end := time.Now().Add(long); time.Now().Before(end) && !t.Failed(); {
		seed = runCluster(t, bin, dir, seed, end, &all)
	}
	t.Logf("%v", all)
	if onlySome() {
		return // the floors are for all faults together
	}
	for _, err := range all.checkFloors() {
		t.Error(err)
	}
}

// runCluster runs some rounds on one cluster, adds up what happened, and returns the seed to go on with.
func runCluster(t *testing.T, bin, dir string, seed uint64, end time.Time, all *totals) uint64 {
	dir += "/" + strconv.FormatUint(seed, 10)
	ok := t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
		size := []int{3, 3, 5}[rand.New(rand.NewPCG(seed, 0)).IntN(3)]
		if v, err := strconv.Atoi(os.Getenv("CORACLE_CHAOS_SERVERS")); err == nil {
			size = v
		}
		start := time.Now()
		logf := func(format string, args ...any) {
			t.Logf("%6.2f "+format, append([]any{time.Since(start).Seconds()}, args...)...)
		}
		testenv.NoError(t, os.Mkdir(dir, 0o755))
		c := newCluster(t, bin, dir, size)
		for number := 0; number < clusterOf && time.Now().Before(end); number++ {
			logf("round %d: seed %d, %d servers", number, seed, size)
			long := min(roundLong, max(time.Until(end), 10*time.Second))
			happened, errs := runRound(context.Background(), c, number, seed, long, logf)
			*all = all.plus(happened)
			for _, err := range errs {
				t.Errorf("seed %d: %v", seed, err)
			}
			if t.Failed() {
				return
			}
			testenv.NoError(t, sweep(context.Background(), c))
			seed++
		}
	})
	if ok {
		_ = os.RemoveAll(dir)
	}
	return seed
}

func setting(t *testing.T) (long time.Duration, seed uint64) {
	long, seed = shortRun, rand.Uint64N(1_000_000)
	if v := os.Getenv("CORACLE_CHAOS_DURATION"); v != "" {
		d := testenv.Must(time.ParseDuration(v))(t)
		long = d
	}
	if v := os.Getenv("CORACLE_CHAOS_SEED"); v != "" {
		n := testenv.Must(strconv.ParseUint(v, 10, 64))(t)
		seed = n
	}
	return long, seed
}
