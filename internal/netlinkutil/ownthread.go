// SPDX-License-Identifier: Apache-2.0

// This file runs functions that change attributes of their thread, such as its namespaces.
//
// It never uses the process' first thread, which Go's runtime cannot end, so that it would keep the changed attributes.
// /proc/PID, /proc/self and /proc/net show the attributes of the first thread, so both this process and others would
// see the changed ones. A namespace would also last as long as the process.

package netlinkutil

import (
	"errors"
	"runtime"

	"golang.org/x/sys/unix"
)

// errNoReturn is the error of a function that ended its goroutine, as a failed test does.
var errNoReturn = errors.New("the function has ended its goroutine and returned nothing")

// Do runs f on a thread that ends afterwards, and returns f's error. Goroutines that f starts run on other threads.
func Do(f func() error) error {
	done := make(chan error, 1) // one: the goroutine ends even if nothing receives
	go func() {
		err := errNoReturn
		defer func() { done <- err }()
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		if unix.Gettid() == unix.Getpid() {
			err = Do(f) // on another thread, while this goroutine holds the first
			runtime.UnlockOSThread()
			return
		}
		err = f()
	}()
	return <-done
}
