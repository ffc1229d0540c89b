// SPDX-License-Identifier: Apache-2.0

package wallclock

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/timers"
)

// followSteps returns a channel that receives when the machine's clock is set, and is closed when ctx is done. Waiting
// costs nothing: the kernel cancels a timer that never expires when the clock is set (timerfd_create(2),
// TFD_TIMER_CANCEL_ON_SET).
func followSteps(ctx context.Context) (<-chan struct{}, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("following the clock: %w", err)
	}
	timer := os.NewFile(uintptr(fd), "timerfd")                         // Go's poller waits for it, since it does not block
	never := unix.ItimerSpec{Value: unix.NsecToTimespec(math.MaxInt64)} // the year 2262
	if err := unix.TimerfdSettime(fd, unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, &never, nil); err != nil {
		return nil, errors.Join(fmt.Errorf("following the clock: %w", err), timer.Close())
	}
	steps := make(chan struct{}, 1) // one: a later step is signalled together with the first
	release := context.AfterFunc(ctx, func() { _ = timer.Close() })
	go func() {
		defer close(steps)
		defer func() {
			if release() {
				_ = timer.Close()
			}
		}()
		expired := make([]byte, 8)
		for {
			if _, err := timer.Read(expired); !errors.Is(err, unix.ECANCELED) {
				return
			}
			steps <- struct{}{}
			if !timers.Sleep(ctx, saveInterval) {
				return
			}
		}
	}()
	return steps, nil
}
