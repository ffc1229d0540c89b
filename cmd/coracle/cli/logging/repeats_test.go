// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/klog/v2"

	"github.com/coracle-k8s/coracle/internal/config"
)

// TestProvokedLinesAreBounded: a client that sends one wrong token after the other causes one line in ten seconds, and
// other lines are all there.
func TestProvokedLinesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, read := setup(t, config.Logging{})
		for range 1000 {
			klog.ErrorS(errors.New("invalid bearer token"), "Unable to authenticate the request")
			time.Sleep(20 * time.Millisecond) // by the fake clock
		}
		klog.ErrorS(nil, "something else")
		klog.ErrorS(nil, "something else")
		line := `ERROR Unable to authenticate the request err="invalid bearer token"`
		expect(t, read(), line, line+" repeated=499", "ERROR something else", "ERROR something else")
	})
}
