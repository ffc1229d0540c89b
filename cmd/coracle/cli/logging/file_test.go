// SPDX-License-Identifier: Apache-2.0

package logging

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// smallFile is a log file that is full after a hundred bytes; a descriptor in place of standard error goes to it, too.
func smallFile(t *testing.T) (l *file, std int) {
	t.Helper()
	l, err := openFile(filepath.Join(t.TempDir(), "log"))
	testenv.NoError(t, err)
	t.Cleanup(func() { testenv.Check(t, l.close()) })
	std, err = unix.Open(l.path, unix.O_WRONLY|unix.O_APPEND|unix.O_CLOEXEC, 0)
	testenv.NoError(t, err)
	t.Cleanup(func() { unix.Close(std) })
	l.max, l.std = 100, []int{std}
	return l, std
}

func (l *file) put(t *testing.T, line string) {
	t.Helper()
	if n, err := l.Write([]byte(line + "\n")); err != nil || n != len(line)+1 {
		t.Fatalf("%d bytes written: %v", n, err)
	}
}

func has(t *testing.T, path, want string) {
	t.Helper()
	testenv.Equal(t, string(testenv.Must(os.ReadFile(path))(t)), want, "%s has", filepath.Base(path))
}

// TestFileIsBounded: a full log file becomes FILE.1, no line is lost or cut, and what a panic writes to standard error
// is in the new file.
func TestFileIsBounded(t *testing.T) {
	l, std := smallFile(t)
	forty := strings.Repeat("a", 39)
	for _, line := range []string{forty, forty, "b"} {
		l.put(t, line)
	}
	l.put(t, forty)
	testenv.Must(unix.Write(std, []byte("panic\n")))(t)
	has(t, l.path+".1", forty+"\n"+forty+"\nb\n")
	has(t, l.path, forty+"\npanic\n")
	for range 10 {
		l.put(t, forty)
	}
	if entries, err := os.ReadDir(filepath.Dir(l.path)); err != nil || len(entries) != 2 {
		t.Errorf("%d files: %v", len(entries), err)
	}
}

// TestNoDescriptorForNewFile: where a new file cannot be opened, the log goes on under its name with one line that says
// so, and is bounded again when files can be opened.
func TestNoDescriptorForNewFile(t *testing.T) {
	l, std := smallFile(t)
	forty := strings.Repeat("a", 39)
	for range 2 {
		l.put(t, forty)
	}
	var usual unix.Rlimit
	testenv.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &usual))
	allow := func(limit unix.Rlimit) {
		t.Helper()
		testenv.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
	}
	defer allow(usual)
	allow(unix.Rlimit{Cur: 1, Max: usual.Max})
	for range 2 {
		l.put(t, forty)
	}
	allow(usual)
	text, err := os.ReadFile(l.path)
	if err != nil || strings.Count(string(text), forty) != 4 || strings.Count(string(text), "\n") != 5 ||
		!strings.Contains(string(text), " WARN  ") {
		t.Errorf("the log has %q (%v)", text, err)
	}
	for range 2 {
		l.put(t, forty)
	}
	testenv.Must(unix.Write(std, []byte("panic\n")))(t)
	old, err := os.ReadFile(l.path + ".1")
	testenv.False(t, err != nil || !strings.HasPrefix(string(old), string(text)), "FILE.1 has %q (%v)", old, err)
	rest, err := os.ReadFile(l.path)
	if err != nil || strings.Count(string(old)+string(rest), forty) != 6 || !strings.HasSuffix(string(rest), "panic\n") {
		t.Errorf("afterwards the log has %q (%v)", rest, err)
	}
}

// TestFileOfAnotherUser: a file that logrotate moves or shortens is left to it.
func TestFileOfAnotherUser(t *testing.T) {
	l, _ := smallFile(t)
	forty := strings.Repeat("a", 39)
	for range 2 {
		l.put(t, forty)
	}
	testenv.NoError(t, os.Truncate(l.path, 0))
	l.put(t, forty)
	has(t, l.path, forty+"\n")
	testenv.NoError(t, os.Rename(l.path, l.path+".old"))
	for range 4 {
		l.put(t, forty)
	}
	testenv.Fails(t, testenv.Err(os.Stat(l.path+".1")), "another one's file was moved")
	has(t, l.path+".old", strings.Repeat(forty+"\n", 5))
}
