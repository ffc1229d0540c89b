// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"

	"github.com/sirupsen/logrus"
)

// fatalTrap stands where upstream would end the process. containerd calls Fatal from goroutines of its own when the CRI
// service or a listener fails; the trap ends that goroutine alone and hands the message to the owner.
type fatalTrap struct {
	failed chan error // capacity 1: the first failure is the one that matters
	ending atomic.Bool
}

// setTrap replaces the exit of logrus' one standard logger, which containerd and runc's libraries share.
func setTrap() *fatalTrap {
	trap := &fatalTrap{failed: make(chan error, 1)}
	std := logrus.StandardLogger()
	std.AddHook(trap)
	std.ExitFunc = func(int) { runtime.Goexit() }
	return trap
}

// or prefers a failure that was trapped over the error at hand, which is often only its consequence.
func (t *fatalTrap) or(err error) error {
	select {
	case trapped := <-t.failed:
		return errors.Join(trapped, err)
	default:
		return err
	}
}

// expectEnd tells the trap that listeners are about to be closed on purpose.
func (t *fatalTrap) expectEnd() { t.ending.Store(true) }

// Levels implements logrus.Hook.
func (t *fatalTrap) Levels() []logrus.Level { return []logrus.Level{logrus.FatalLevel} }

// Fire implements logrus.Hook.
func (t *fatalTrap) Fire(e *logrus.Entry) error {
	if t.ending.Load() {
		return nil
	}
	err := errors.New(e.Message)
	if cause, ok := e.Data[logrus.ErrorKey].(error); ok {
		err = fmt.Errorf("%s: %w", e.Message, cause)
	}
	select {
	case t.failed <- err:
	default:
	}
	return nil
}
