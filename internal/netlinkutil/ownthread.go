// SPDX-License-Identifier: Apache-2.0

// This file runs functions that change what belongs to their thread, such as its namespaces.
//
// It never takes the process's first thread, which Go's runtime cannot end: that one would stay where the function has
// led it. With it would stay what the process is to others and to itself, since /proc/PID, /proc/self and /proc/net are
// those of the first thread; and the namespace would last as long as the process.

package netlinkutil

import (
	"errors"
	"runtime"

	"golang.org/x/sys/unix"
)

// errNoReturn is the error of a function that ended its goroutine, as a test does that has failed.
var errNoReturn = errors.New("the function has ended its goroutine and returned nothing")

// Do runs f on a thread that ends with it, and returns what it returns. What f starts on other goroutines is on other
// threads.
func Do(f func() error) error {
	done := make(chan error, 1) // one: the goroutine ends whether or not anybody reads
	go func() {
		err := errNoReturn
		defer func() { done <- err }()
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		if unix.Gettid() == unix.Getpid() {
			err = Do(f) // on another one, while this goroutine keeps the first
			runtime.UnlockOSThread()
			return
		}
		err = f()
	}()
	return <-done
}
