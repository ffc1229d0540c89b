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

// fatalPatience is how long an orderly stop may take after a part of Kubernetes has given up.
const fatalPatience = 10 * time.Second

// errGaveUp is why coracle stops when upstream's code calls klog.Fatal or klog.Exit.
var errGaveUp = errors.New("a part of Kubernetes gave up; the last lines of the log before this one say why. " +
	"Pods keep running; the service manager starts coracle again")

// catchFatal turns upstream's ways of ending the process (docs/architecture.md lists them) into an orderly stop: what
// was acknowledged is on the disk either way, but connections, the store and the sockets are closed as they should be.
// A stop that is blocked is cut off.
func catchFatal(stop context.CancelCauseFunc) {
	var once sync.Once
	klog.OsExit = func(code int) {
		once.Do(func() {
			stop(errGaveUp)
			time.AfterFunc(fatalPatience, func() { os.Exit(code) })
		})
		runtime.Goexit() // the caller counts on not coming back
	}
}
