// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestNotify(t *testing.T) {
	for name, socket := range map[string]string{"path": filepath.Join(t.TempDir(), "n"), "abstract": "@coracle-test-" + filepath.Base(t.TempDir())} {
		t.Run(name, func(t *testing.T) {
			bind := socket
			if bind[0] == '@' {
				bind = "\x00" + bind[1:]
			}
			c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: bind, Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			t.Setenv("NOTIFY_SOCKET", socket)
			n := takeNotifier()
			if v, ok := os.LookupEnv("NOTIFY_SOCKET"); ok {
				t.Errorf("children would inherit NOTIFY_SOCKET=%s", v)
			}
			if err := n.send("READY=1"); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 100)
			got, err := c.Read(b)
			if err != nil || string(b[:got]) != "READY=1" {
				t.Errorf("systemd got %q, %v", b[:got], err)
			}
		})
	}
	if err := (notifier{}).send("READY=1"); err != nil {
		t.Errorf("without systemd: %v", err)
	}
}
