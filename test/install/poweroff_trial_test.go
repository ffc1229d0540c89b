// SPDX-License-Identifier: Apache-2.0

package install

import (
	"bufio"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/coracle-k8s/coracle/internal/slots"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// watched is a disk that forgets, whose content is looked at after each call. Files and folders are known by their
// inodes.
type watched struct {
	*forgetful
	inodes map[uint64]*node
}

func (w *watched) readNode(path string) *node {
	w.t.Helper()
	fi := testenv.Must(os.Lstat(path))(w.t)
	inode := fi.Sys().(*syscall.Stat_t).Ino
	n := w.inodes[inode]
	if n == nil {
		n = &node{mode: fi.Mode()}
		if fi.IsDir() {
			n = newFolder()
		}
		w.inodes[inode] = n
	}
	switch {
	case fi.IsDir():
		clear(n.names)
		for _, e := range testenv.Must(os.ReadDir(path))(w.t) {
			n.names[e.Name()] = w.readNode(filepath.Join(path, e.Name()))
		}
	case fi.Mode()&os.ModeSymlink != 0:
		n.target = testenv.Must(os.Readlink(path))(w.t)
	default:
		n.mode, n.data = fi.Mode(), testenv.Must(os.ReadFile(path))(w.t)
	}
	return n
}

// sync stores what a path has now: a file's data, or a folder's names.
func (w *watched) sync(path string) {
	w.t.Helper()
	n := w.readNode(path)
	n.synced, n.stored = n.data, maps.Clone(n.names)
}

// cut looks at the disk, and then at what each loss of power would leave: one whole version has to run.
func (w *watched) cut(seed uint64, step string, allowed ...string) {
	w.t.Helper()
	seen := map[*node]bool{}
	w.top = w.readNode(w.root)
	w.mark(w.top, seen)
	maps.DeleteFunc(w.inodes, func(_ uint64, n *node) bool { return !seen[n] }) // the kernel gives their numbers away
	for _, l := range losses(seed) {
		rest := &forgetful{w.t, filepath.Join(w.t.TempDir(), "versions"), w.top}
		state := rest.lose(l)
		c := exec.Command("/bin/sh", starterOf(w.root))
		c.Env = append(os.Environ(), slots.FolderEnv+"="+rest.root, "CALLS=/dev/stdout")
		out, err := c.Output()
		ran := strings.TrimSpace(string(out))
		whole := false
		for _, version := range allowed {
			whole = whole || ran == "runs "+version
		}
		testenv.Require(w.t, err == nil && whole, "after %s, which has lost %s: %q, %v\n%s", step, l.name, ran, err, state)
	}
}

func (w *watched) mark(n *node, seen map[*node]bool) {
	seen[n] = true
	for _, child := range n.names {
		w.mark(child, seen)
	}
}

func starterOf(root string) string { return filepath.Join(filepath.Dir(root), slots.StarterName) }

// TestLossOfPowerDuringATrial: after each call of an upgrade, those of the program and those of the starter, and
// whatever of it the disk forgets, one whole version runs at the next boot. A commit stays, and so does a way back.
func TestLossOfPowerDuringATrial(t *testing.T) {
	for _, commits := range []bool{true, false} {
		t.Run(fmt.Sprintf("commit %v", commits), func(t *testing.T) {
			dir := t.TempDir()
			v := slots.Below(dir)
			program := func(name string) (file, digest string) {
				file = filepath.Join(dir, name)
				testenv.NoError(t, os.WriteFile(file, []byte("#!/bin/sh\necho runs "+name+" >\"$CALLS\"\n"), 0o755))
				return file, testenv.Must(slots.Digest(file))(t)
			}
			testenv.NoError(t, os.WriteFile(starterOf(v.Dir), []byte(slots.Starter), 0o755))
			one, oneDigest := program("one")
			two, twoDigest := program("two")
			testenv.NoError(t, os.Mkdir(v.Dir, 0o755))
			testenv.NoError(t, v.Stage(one, oneDigest))
			testenv.NoError(t, os.Symlink(oneDigest, filepath.Join(v.Dir, "current")))
			w := &watched{&forgetful{t, v.Dir, nil}, map[uint64]*node{}}
			for _, path := range []string{v.Slot(oneDigest, "coracle"), v.Slot(oneDigest, ""), v.Dir} {
				w.sync(path)
			}
			seed, allowed, steps := testenv.Seed(t), []string{"one", "two"}, []string{}
			step := func(call string, synced ...string) {
				steps = append(steps, call)
				w.cut(seed+uint64(len(steps)), call, allowed...)
				for _, path := range synced {
					w.sync(path)
				}
				w.cut(seed+uint64(len(steps)), call, allowed...)
			}
			v.After = func(call string) error {
				what, _, _ := strings.Cut(call, " ")
				paths := map[string][]string{"sync program": {v.Slot(twoDigest+".new", "coracle")}, "sync slot.new": {v.Slot(twoDigest+".new", "")},
					"sync versions": {v.Dir}, "sync tries": {filepath.Join(v.Dir, "tries")}}[call]
				testenv.True(t, (what == "sync") == (paths != nil), "the test does not know %s", call)
				step(call, paths...)
				return nil
			}
			testenv.NoError(t, v.Stage(two, twoDigest))
			testenv.NoError(t, v.Begin(twoDigest))
			start := func() string { return w.start(step) }
			testenv.Equal(t, start(), "runs two", "")
			if commits {
				testenv.NoError(t, v.Commit(twoDigest))
				allowed = []string{"two"}
			} else {
				for range 2 {
					testenv.Equal(t, start(), "runs two", "")
				}
				testenv.Equal(t, start(), "runs one", "")
				allowed = []string{"one"}
			}
			step("the end")
			t.Logf("steps: %q", steps)
		})
	}
}

// start runs the starter, whose rm, sync and mv stop before and after their work, and returns what runs.
func (w *watched) start(step func(call string, synced ...string)) string {
	w.t.Helper()
	dir := w.t.TempDir()
	var pipes []*os.File
	for _, name := range []string{"calls", "replies"} {
		path := filepath.Join(dir, name)
		testenv.NoError(w.t, syscall.Mkfifo(path, 0o600))
		f := testenv.Must(os.OpenFile(path, os.O_RDWR, 0))(w.t)
		defer f.Close()
		pipes = append(pipes, f)
	}
	for _, name := range []string{"rm", "sync", "mv"} {
		text := "#!/bin/sh\nshow() { echo \"$*\" >\"$CALLS\"; read -r _ <\"$REPLIES\"; }\nshow before " + name + " \"$@\"\n/bin/" + name +
			" \"$@\"\ncode=$?\nshow after " + name + " \"$@\"\nexit $code\n"
		testenv.NoError(w.t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755))
	}
	c := exec.Command("/bin/sh", starterOf(w.root))
	c.Env = []string{"PATH=" + dir + ":/usr/bin:/bin", slots.FolderEnv + "=" + w.root, "CALLS=" + pipes[0].Name(),
		"REPLIES=" + pipes[1].Name()}
	testenv.NoError(w.t, c.Start())
	for calls := bufio.NewReader(pipes[0]); ; {
		line := strings.TrimSpace(testenv.Must(calls.ReadString('\n'))(w.t))
		if strings.HasPrefix(line, "runs ") {
			testenv.NoError(w.t, c.Wait())
			return line
		}
		args := strings.Fields(strings.ReplaceAll(line, w.root, "versions"))
		var synced []string
		if args[0] == "after" && args[1] == "sync" {
			synced = []string{strings.Fields(line)[2]}
		}
		step("start: "+strings.Join(args, " "), synced...)
		testenv.Must(pipes[1].WriteString("\n"))(w.t)
	}
}
