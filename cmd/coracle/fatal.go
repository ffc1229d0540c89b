// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"os"
	"runtime"
	"sync"
	"time"

	"k8s.io/klog/v2"
)

// fatalTimeout is how long an orderly stop may take after one of Kubernetes' components has called klog.Fatal or
// klog.Exit.
const fatalTimeout = 10 * time.Second

// errGaveUp is the cause with which coracle stops when upstream's code calls klog.Fatal or klog.Exit.
var errGaveUp = errors.New("a part of Kubernetes gave up; the last lines of the log before this one say why. " +
	"Pods keep running; the service manager starts coracle again")

// catchFatal turns upstream's calls that end the process (docs/architecture.md lists them) into an orderly stop.
// Acknowledged writes are on the disk in either case. An orderly stop also closes connections, the store and the
// sockets. A stop that blocks is cut off after fatalTimeout.
func catchFatal(stop context.CancelCauseFunc) {
	var once sync.Once
	klog.OsExit = func(code int) {
		once.Do(func() {
			stop(errGaveUp)
			time.AfterFunc(fatalTimeout, func() { os.Exit(code) })
		})
		runtime.Goexit() // the caller expects that OsExit does not return
	}
}
