// SPDX-License-Identifier: Apache-2.0

package netlinkutil

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// onFirst runs f in a goroutine that is on the process's first thread when f begins, and so is the first goroutine that
// f starts and waits for.
func onFirst(f func()) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // no other processor takes what f starts
	end := make(chan struct{})
	defer close(end)
	for { // the other threads are held until the first one is left
		first, done := make(chan bool), make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			is := unix.Gettid() == unix.Getpid()
			first <- is
			if !is {
				<-end
			}
		}()
		if !<-first {
			continue
		}
		<-done
		break
	}
	f()
}

// TestFirstThreadIsNotTaken, where it is the next one that has nothing to do.
func TestFirstThreadIsNotTaken(t *testing.T) {
	met := 0
	for range 200 {
		onFirst(func() {
			testenv.NoError(t, Do(func() error {
				if unix.Gettid() == unix.Getpid() {
					return errors.New("it runs on the first thread")
				}
				return nil
			}))
		})
		onFirst(func() {
			first := make(chan bool)
			go func() { first <- unix.Gettid() == unix.Getpid() }()
			if <-first {
				met++
			}
		})
	}
	testenv.True(t, met != 0, "no goroutine comes to the first thread: this proves nothing")
}

// TestThreadEndsWithTheFunction with the function.
func TestThreadEndsWithTheFunction(t *testing.T) {
	thread := 0
	testenv.NoError(t, Do(func() error { thread = unix.Gettid(); return nil }))
	testenv.Until(t, 2*time.Minute, "the thread is gone", func() bool {
		_, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", thread))
		return errors.Is(err, os.ErrNotExist)
	})
}

// TestDoReturnsTheError: Do returns the function's error, and one if the function does not return.
func TestDoReturnsTheError(t *testing.T) {
	want := errors.New("why")
	testenv.Equal(t, Do(func() error { return want }), want, "")
	testenv.Equal(t, Do(func() error { runtime.Goexit(); return nil }), errNoReturn, "the goroutine ended:")
}
