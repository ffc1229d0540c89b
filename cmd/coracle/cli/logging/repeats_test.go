// SPDX-License-Identifier: Apache-2.0

package logging_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"k8s.io/klog/v2"

	"github.com/coracle-k8s/coracle/internal/config"
)

// TestFrequentLinesAreBounded: a client that sends a kubelet one wrong token after the other causes one line in ten
// seconds. So
// do the watches of a server that loses its leader. Other lines are all there.
func TestFrequentLinesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, read := setup(t, config.Logging{})
		for range 1000 {
			klog.ErrorS(errors.New("invalid bearer token"), "Unable to authenticate the request due to an error")
			time.Sleep(20 * time.Millisecond) // by the fake clock
		}
		klog.ErrorS(nil, "something else")
		klog.ErrorS(nil, "something else")
		for range 130 {
			klog.Errorf("watch chan error: %v", rpctypes.ErrNoLeader)
		}
		line := `ERROR Unable to authenticate the request due to an error err="invalid bearer token"`
		expect(t, read(), line, line+" repeated=499", "ERROR something else", "ERROR something else",
			"ERROR watch chan error: etcdserver: no leader")
	})
}
