// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"testing"
)

// Alone runs f where there is no test, with a TB that prints to standard error, and then what f left to clean up. It
// returns false when something failed.
func Alone(f func(t testing.TB)) bool {
	a := &alone{}
	defer removeBox()
	for next := func() { f(a) }; next != nil; next = a.lastCleanup() {
		done := make(chan struct{})
		go func() { // of its own, so that Fatal can end it
			defer close(done)
			next()
		}()
		<-done
	}
	return !a.failed
}

// alone has the methods of a test that machines and servers use. The others would panic: their TB is nil.
type alone struct {
	testing.TB
	failed   bool
	cleanups []func()
}

func (a *alone) lastCleanup() func() {
	if len(a.cleanups) == 0 {
		return nil
	}
	last := a.cleanups[len(a.cleanups)-1]
	a.cleanups = a.cleanups[:len(a.cleanups)-1]
	return last
}

func (a *alone) Helper()                           {}
func (a *alone) Cleanup(f func())                  { a.cleanups = append(a.cleanups, f) }
func (a *alone) Failed() bool                      { return a.failed }
func (a *alone) Log(args ...any)                   { fmt.Fprintln(os.Stderr, args...) }
func (a *alone) Logf(format string, args ...any)   { fmt.Fprintf(os.Stderr, format+"\n", args...) }
func (a *alone) Error(args ...any)                 { a.failed = true; a.Log(args...) }
func (a *alone) Errorf(format string, args ...any) { a.failed = true; a.Logf(format, args...) }
func (a *alone) Fatal(args ...any)                 { a.Error(args...); runtime.Goexit() }
func (a *alone) Fatalf(format string, args ...any) { a.Errorf(format, args...); runtime.Goexit() }
func (a *alone) Context() context.Context          { return context.Background() }
func (a *alone) Skipf(format string, args ...any)  { a.Fatalf(format, args...) }
func (a *alone) Skip(args ...any)                  { a.Fatal(args...) }
