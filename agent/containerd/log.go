// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
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

// installLog sends containerd's log to ours and sets the trap. containerd logs through logrus' one standard logger, and so
// do runc's libraries inside the kubelet; there is no other place to hook into.
func installLog(log *slog.Logger, debug bool) *fatalTrap {
	trap := &fatalTrap{failed: make(chan error, 1)}
	std := logrus.StandardLogger()
	std.SetOutput(io.Discard)
	std.SetFormatter(discard{})
	std.SetLevel(logrus.WarnLevel) // below that, containerd also raises klog's verbosity for the whole process
	if debug {
		std.SetLevel(logrus.InfoLevel)
	}
	std.ReplaceHooks(logrus.LevelHooks{})
	std.AddHook(slogHook{log: log.With("component", "containerd"), trap: trap})
	std.ExitFunc = func(int) { runtime.Goexit() }
	return trap
}

// discard spares the formatting of lines whose text nobody reads: the hook has them already.
type discard struct{}

func (discard) Format(*logrus.Entry) ([]byte, error) { return nil, nil }

// slogHook turns logrus entries into slog records.
type slogHook struct {
	log  *slog.Logger
	trap *fatalTrap
}

func (slogHook) Levels() []logrus.Level { return logrus.AllLevels }

func (h slogHook) Fire(e *logrus.Entry) error {
	attrs := make([]any, 0, 2*len(e.Data))
	for k, v := range e.Data {
		attrs = append(attrs, slog.Any(k, v))
	}
	switch e.Level {
	case logrus.PanicLevel, logrus.FatalLevel:
		if h.trap.ending.Load() {
			return nil
		}
		h.log.Error(e.Message, attrs...)
		select {
		case h.trap.failed <- fatalError(e):
		default:
		}
	case logrus.ErrorLevel:
		h.log.Error(e.Message, attrs...)
	case logrus.WarnLevel:
		h.log.Warn(e.Message, attrs...)
	case logrus.InfoLevel:
		h.log.Info(e.Message, attrs...)
	default:
		h.log.Debug(e.Message, attrs...)
	}
	return nil
}

func fatalError(e *logrus.Entry) error {
	if cause, ok := e.Data[logrus.ErrorKey].(error); ok {
		return fmt.Errorf("%s: %w", e.Message, cause)
	}
	return errors.New(e.Message)
}
