// SPDX-License-Identifier: Apache-2.0

package resolvconf_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/coracle-k8s/coracle/internal/resolvconf"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func write(t *testing.T, path, content string) {
	t.Helper()
	testenv.NoError(t, os.WriteFile(path, []byte(content), 0o600))
}

func TestFileWithUsableServersIsChosen(t *testing.T) {
	dir := t.TempDir()
	etc, systemd, missing := filepath.Join(dir, "etc"), filepath.Join(dir, "systemd"), filepath.Join(dir, "missing")
	write(t, systemd, "nameserver 192.0.2.1\n")
	for _, c := range []struct{ file, systemd, want string }{
		{"nameserver 192.0.2.2\n", systemd, etc},
		{"search lan\nnameserver 127.0.0.53\noptions edns0\n", systemd, systemd},
		{"nameserver 127.0.0.1\n", missing, etc},
		{"nameserver ::1\nnameserver fe80::1%eth0\n", systemd, etc},
		{"", missing, etc},
	} {
		write(t, etc, c.file)
		testenv.Equal(t, resolvconf.Choose([]string{etc, c.systemd}), c.want, "%q:", c.file)
	}
	testenv.Equal(t, resolvconf.Choose([]string{missing, systemd}), systemd, "without the first file:")
}

func TestServersAreParsed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	write(t, path, "# nameserver 192.0.2.9\nsearch home\nnameserver 192.0.2.1\nnameserver\t2001:db8::1 # x\nnameserver ::ffff:192.0.2.2\nnameserver bogus\nnameserver\n")
	servers, err := resolvconf.Servers(path)
	if got := fmt.Sprint(servers); err != nil || got != "[192.0.2.1 2001:db8::1 192.0.2.2]" {
		t.Errorf("got %s, %v", got, err)
	}
	testenv.Fails(t, testenv.Err(resolvconf.Servers(path+"x")), "a missing file is no error")
}
