// SPDX-License-Identifier: Apache-2.0

package testenv_test

import (
	"errors"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// recorder is a test whose end is observed. The methods that it lacks would panic.
type recorder struct {
	testing.TB
	wrote           string
	failed, skipped bool
}

func (r *recorder) Helper() {}
func (r *recorder) Skip(args ...any) {
	r.wrote, r.skipped = fmt.Sprint(args...), true
	runtime.Goexit()
}
func (r *recorder) Fatalf(format string, args ...any) {
	r.wrote, r.failed = fmt.Sprintf(format, args...), true
	runtime.Goexit()
}

// record runs f as a test of its own would run.
func record(f func(t testing.TB)) *recorder {
	r, done := &recorder{}, make(chan struct{})
	go func() {
		defer close(done)
		f(r)
	}()
	<-done
	return r
}

func TestMissingRequirementFailsOrSkips(t *testing.T) {
	for _, tt := range []struct {
		require string
		fails   bool
	}{{"", false}, {"embedded", false}, {"root", true}, {"embedded,root", true}, {"rooted", false}} {
		t.Setenv(testenv.RequireVar, tt.require)
		r := record(func(t testing.TB) { testenv.Missing(t, testenv.Root, "it mounts %s", "things") })
		if r.failed != tt.fails || r.skipped == tt.fails {
			t.Errorf("%s=%q: failed %t, skipped %t, said %q", testenv.RequireVar, tt.require, r.failed, r.skipped, r.wrote)
		}
	}
}

func TestEventuallyWaitsAndSaysWhatFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		testenv.Eventually(t, time.Minute, "three seconds pass", func() error {
			if time.Since(start) < 3*time.Second {
				return errors.New("too early")
			}
			return nil
		})
		if took := time.Since(start); took > 4*time.Second {
			t.Errorf("noticed after %v", took)
		}
		r := record(func(t testing.TB) {
			testenv.Eventually(t, time.Second, "a miracle", func() error { return errors.New("no sign") })
		})
		if !r.failed || r.wrote != "a miracle: not within 1s: no sign" {
			t.Errorf("failed %t, said %q", r.failed, r.wrote)
		}
	})
}
