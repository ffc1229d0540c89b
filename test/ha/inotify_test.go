//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// takeInstances has other programs of root take as many inotify instances as a kernel gives by itself, beside those of
// coracle, and then has the kernel give no more.
const takeInstances = `instances() { ls -l /proc/[0-9]*/fd | grep -c anon_inode:inotify; }
limit=/proc/sys/fs/inotify/max_user_instances
all=$(($(instances) + 128))
echo $all > $limit
: > /run/watched
for i in $(seq 128); do tail -f /run/watched > /dev/null 2>&1 < /dev/null & done
until [ $(instances) = $all ]; do sleep 1; done
echo 128 > $limit
echo all are taken
`

// TestNodeWithoutInotifyInstances: a server with a node, on a machine that has 128 inotify instances, goes on when
// other programs have all of them, and starts again beside these: it raises the limit before its kubelet starts.
func TestNodeWithoutInotifyInstances(t *testing.T) {
	harness.SkipUnlessWhole(t, "it takes minutes, for system calls are slow in such a machine")
	g := newGuests(t)
	server := g.add(1, "server and agent", "--network-backend none --disable-kube-proxy --disable network-policy,helm-controller,metrics-server")
	server.boot(time.Now())
	api := server.serves("at first")
	server.ready(api, "", "at first")
	log := func() string {
		data := testenv.Must(os.ReadFile(server.reads("log")))(t)
		return string(data)
	}
	heartbeat := func() time.Time {
		n, err := api.CoreV1().Nodes().Get(t.Context(), server.Name, metav1.GetOptions{})
		if err == nil && Ready(n) == corev1.ConditionTrue {
			for _, c := range n.Status.Conditions {
				if c.Type == corev1.NodeReady {
					return c.LastHeartbeatTime.Time
				}
			}
		}
		return time.Time{}
	}
	ended := strings.Count(log(), ends)
	testenv.Contains(t, server.sh(takeInstances), "all are taken", "the machine's shell prints")
	first := heartbeat()
	server.sh("kill $(cat /run/coracle.pid)")
	server.await("it has ended and its node is ready once more", server, func() error {
		if n := strings.Count(log(), ends); n == ended {
			return errors.New("it has not ended")
		}
		if !heartbeat().After(first) {
			return errors.New("its node has not reported to be ready since then")
		}
		return nil
	})
	testenv.Equal(t, strings.Count(log(), ends), ended+1, "times that it ended, by\n%s\n", log())
	testenv.Contains(t, server.sh("cat /proc/sys/fs/inotify/max_user_instances"), "1024", "the limit is")
}

// sh has a shell on the machine run a script and returns what it printed.
func (x *guest) sh(script string) string {
	x.t.Helper()
	c := testenv.Must(x.from.Dial(x.t.Context(), "tcp", x.IP+":10"))(x.t)
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(harness.Longer))
	testenv.NoError(x.t, testenv.Err(fmt.Fprintf(c, "exec 2>&1\n%sexit\n", strings.TrimSuffix(script, "\n")+"\n")))
	out, err := io.ReadAll(c)
	testenv.NoError(x.t, err, "%s: %s", x.Name, out)
	return string(out)
}
