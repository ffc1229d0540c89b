// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"os"
	"testing"

	vishnetns "github.com/vishvananda/netns"

	"github.com/coracle-k8s/coracle/test/netns"
)

// TestProcessStaysWhereItIs: what others see of the process, and what it reads of itself below /proc/self and
// /proc/net, is the node's for ever, though threads of it have been with pods.
func TestProcessStaysWhereItIs(t *testing.T) {
	pod, err := vishnetns.GetFromPath(netns.New(t).Path)
	if err != nil {
		t.Fatal(err)
	}
	defer pod.Close()
	where := func(file string) string {
		t.Helper()
		to, err := os.Readlink(file)
		if err != nil {
			t.Fatal(err)
		}
		return to
	}
	before := where("/proc/thread-self/ns/net")
	for i := range 1000 {
		inside := ""
		if err := inNetns(pod, func() (err error) { inside, err = os.Readlink("/proc/thread-self/ns/net"); return err }); err != nil {
			t.Fatal(err)
		}
		if inside == before {
			t.Fatal("the function does not run in the pod's namespace")
		}
		if now := where("/proc/self/ns/net"); now != before {
			t.Fatalf("after %d calls the process is in the pod's namespace", i+1)
		}
	}
}
