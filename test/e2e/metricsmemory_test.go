//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// burnerHolds is what a burner keeps in memory, in bytes: much more than its processes and those that look at it take.
const burnerHolds = 32 << 20

// workingSet prints the memory of the control group in whose sight it runs, and how much of that is files that no
// process has used for a while, in either version of control groups. The difference is what kubelets call the working
// set.
const workingSet = `cd /sys/fs/cgroup/memory 2> /dev/null && cat memory.usage_in_bytes && sed -n 's/^total_inactive_file //p' memory.stat ||
{ cd /sys/fs/cgroup && cat memory.current && sed -n 's/^inactive_file //p' memory.stat; }`

// parseWorkingSet understands what that prints.
func parseWorkingSet(out string, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	f := strings.Fields(out)
	if len(f) != 2 {
		return 0, fmt.Errorf("the control group's memory is %q", out)
	}
	usage, err := strconv.ParseInt(f[0], 10, 64)
	if err != nil {
		return 0, err
	}
	unused, err := strconv.ParseInt(f[1], 10, 64)
	return usage - unused, err
}

// memoryAgrees compares a container's figure with its control group, which holds the same all the time but for what is
// run in it to look. It returns an error where the control group cannot be read.
func memoryAgrees(k *harness.Kube, pod, said string) error {
	k.T.Helper()
	q, err := resource.ParseQuantity(said)
	testenv.NoError(k.T, err, "the pod uses %q of memory", said)
	read, err := parseWorkingSet(k.Try("exec", pod, "-c", "box", "--", "sh", "-c", workingSet))
	if err != nil {
		return err
	}
	k.T.Logf("top: %s of memory; its control group: %d Ki", said, read>>10)
	const probeMemory = 4 << 20 // what is run in the container to look
	if v := q.Value(); v < burnerHolds || v < read*9/10-probeMemory || v > read*11/10+probeMemory {
		return fmt.Errorf("the API says that %s of memory are used, of which %d are held; the control group, %d", said, burnerHolds, read)
	}
	return nil
}

// nodeMemoryAgrees compares a node's figure with its machine's control group, within what a busy machine takes and
// gives back between two looks.
func nodeMemoryAgrees(k *harness.Kube) {
	k.T.Helper()
	harness.Eventually(k.T, soon, "the node's memory", func() error {
		out, err := k.Try("get", "--raw", "/apis/metrics.k8s.io/v1beta1/nodes/node-1")
		if err != nil {
			return err
		}
		var m struct {
			Usage struct{ Memory resource.Quantity }
		}
		if err := json.Unmarshal([]byte(out), &m); err != nil {
			return err
		}
		read, err := parseWorkingSet(k.Run("sh", "-c", workingSet))
		if err != nil {
			return err
		}
		if said := m.Usage.Memory.Value(); said < read*2/3 || said > read*3/2 {
			return fmt.Errorf("the API says that %d Ki of memory are used; the machine's control group, %d Ki", said>>10, read>>10)
		}
		k.T.Logf("top node: %s of memory; the machine's control group: %d Ki", m.Usage.Memory.String(), read>>10)
		return nil
	})
}
