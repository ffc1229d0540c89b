// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"os"
	"testing"

	vishnetns "github.com/vishvananda/netns"

	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestProcessStaysWhereItIs: what others see of the process, and what it reads of itself below /proc/self and
// /proc/net, is the node's for ever, though threads of it have been with pods.
func TestProcessStaysWhereItIs(t *testing.T) {
	pod := testenv.Must(vishnetns.GetFromPath(netns.New(t).Path))(t)
	defer pod.Close()
	where := func(file string) string {
		t.Helper()
		return testenv.Must(os.Readlink(file))(t)
	}
	before := where("/proc/thread-self/ns/net")
	for i := range 1000 {
		inside := ""
		testenv.NoError(t, inNetns(pod, func() (err error) { inside, err = os.Readlink("/proc/thread-self/ns/net"); return err }))
		testenv.Require(t, inside != before, "the function does not run in the pod's namespace")
		if now := where("/proc/self/ns/net"); now != before {
			t.Fatalf("after %d calls the process is in the pod's namespace", i+1)
		}
	}
}
