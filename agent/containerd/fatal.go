// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"

	"github.com/sirupsen/logrus"
)

// fatalTrap replaces the exit of the process. containerd calls Fatal in its own goroutines when the CRI service or a
// listener fails. The trap ends that goroutine alone and sends the message to failure.
type fatalTrap struct {
	failure  chan error // capacity 1: the first failure is the one that matters
	ignoring atomic.Bool
}

// setTrap replaces the exit of logrus' one standard logger, which containerd and runc's libraries share.
func setTrap() *fatalTrap {
	trap := &fatalTrap{failure: make(chan error, 1)}
	std := logrus.StandardLogger()
	std.AddHook(trap)
	std.ExitFunc = func(int) { runtime.Goexit() }
	return trap
}

// joinFailure returns err, joined with the trapped failure if there is one. err is often only the consequence of that
// failure.
func (t *fatalTrap) joinFailure(err error) error {
	select {
	case trapped := <-t.failure:
		return errors.Join(trapped, err)
	default:
		return err
	}
}

// expectEnd makes the trap ignore failures from now on: the listeners are about to be closed on purpose.
func (t *fatalTrap) expectEnd() { t.ignoring.Store(true) }

// Levels implements logrus.Hook.
func (t *fatalTrap) Levels() []logrus.Level { return []logrus.Level{logrus.FatalLevel} }

// Fire implements logrus.Hook.
func (t *fatalTrap) Fire(e *logrus.Entry) error {
	if t.ignoring.Load() {
		return nil
	}
	err := errors.New(e.Message)
	if cause, ok := e.Data[logrus.ErrorKey].(error); ok {
		err = fmt.Errorf("%s: %w", e.Message, cause)
	}
	select {
	case t.failure <- err:
	default:
	}
	return nil
}
