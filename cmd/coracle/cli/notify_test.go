// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestSystemdIsNotified(t *testing.T) {
	for name, socket := range map[string]string{"path": filepath.Join(t.TempDir(), "n"), "abstract": "@coracle-test-" + filepath.Base(t.TempDir())} {
		t.Run(name, func(t *testing.T) {
			bind := socket
			if bind[0] == '@' {
				bind = "\x00" + bind[1:]
			}
			c := testenv.Must(net.ListenUnixgram("unixgram", &net.UnixAddr{Name: bind, Net: "unixgram"}))(t)
			defer c.Close()
			t.Setenv("NOTIFY_SOCKET", socket)
			n := takeNotifier()
			if v, ok := os.LookupEnv("NOTIFY_SOCKET"); ok {
				t.Errorf("children would inherit NOTIFY_SOCKET=%s", v)
			}
			testenv.NoError(t, n.send("READY=1"))
			b := make([]byte, 100)
			got, err := c.Read(b)
			testenv.False(t, err != nil || string(b[:got]) != "READY=1", "systemd got %q, %v", b[:got], err)
		})
	}
	testenv.Check(t, (notifier{}).send("READY=1"), "without systemd")
}
