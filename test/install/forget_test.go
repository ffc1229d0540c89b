// SPDX-License-Identifier: Apache-2.0

package install

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// node is a file, a link or a folder of a disk that forgets: what was written since the last sync of a file, and the
// names that came and went since the last sync of a folder.
type node struct {
	mode          os.FileMode
	target        string // of a link
	data, synced  []byte
	names, stored map[string]*node // of a folder: as they are, and as the disk has them
}

func newFolder() *node {
	return &node{mode: os.ModeDir | 0o755, names: map[string]*node{}, stored: map[string]*node{}}
}

// loss says what a loss of power takes.
type loss struct {
	name string
	// names and data say whether a name, or the data of a file, is as it was written last, and not as the disk has it.
	names, data func() bool
}

func losses(seed uint64) []loss {
	yes, no := func() bool { return true }, func() bool { return false }
	out := []loss{{"everything", no, no}, {"nothing", yes, yes}, {"data", yes, no}}
	for i := range uint64(4) {
		r := rand.New(rand.NewPCG(seed, i))
		coin := func() bool { return r.IntN(2) == 0 }
		out = append(out, loss{fmt.Sprintf("some, %d", i), coin, coin})
	}
	return out
}

// forgetful is a disk with the folder root.
type forgetful struct {
	t    *testing.T
	root string
	top  *node
}

// readDisk returns a disk that has stored what is in the folder.
func readDisk(t *testing.T, root string) *forgetful {
	t.Helper()
	f := &forgetful{t, root, nil}
	f.top = f.read(root)
	return f
}

func (f *forgetful) read(path string) *node {
	f.t.Helper()
	fi := testenv.Must(os.Lstat(path))(f.t)
	n := &node{mode: fi.Mode()}
	switch {
	case fi.IsDir():
		n = newFolder()
		for _, e := range testenv.Must(os.ReadDir(path))(f.t) {
			n.names[e.Name()] = f.read(filepath.Join(path, e.Name()))
		}
		n.stored = maps.Clone(n.names)
	case fi.Mode()&os.ModeSymlink != 0:
		n.target = testenv.Must(os.Readlink(path))(f.t)
	default:
		n.data = testenv.Must(os.ReadFile(path))(f.t)
		n.synced = n.data
	}
	return n
}

// at returns the folder that a path is in, and its name there. Links on the way are followed.
func (f *forgetful) at(path string) (folder *node, name string) {
	f.t.Helper()
	rel, inside := strings.CutPrefix(path, f.root+"/")
	if !inside {
		return nil, ""
	}
	folder = f.top
	parts := strings.Split(rel, "/")
	for _, part := range parts[:len(parts)-1] {
		next := folder.names[part]
		testenv.Require(f.t, next != nil && next.names != nil, "there is no folder %s in %s", part, path)
		folder = next
	}
	return folder, parts[len(parts)-1]
}

// do makes the change of a command: its name and its arguments without flags. content is what a copy has.
func (f *forgetful) do(command string, args []string, content []byte) {
	f.t.Helper()
	last := args[len(args)-1]
	if command == "mkdir" {
		f.mkdir(last)
		return
	}
	folder, name := f.at(last)
	if folder == nil && command != "sync" {
		return // outside
	}
	switch command {
	case "cp":
		folder.names[name] = &node{mode: 0o644, data: content}
	case "chmod":
		folder.names[name].mode = map[string]os.FileMode{"755": 0o755, "600": 0o600}[args[0]]
	case "ln":
		folder.names[name] = &node{mode: os.ModeSymlink, target: args[0]}
	case "mv":
		from, old := f.at(args[0])
		folder.names[name] = from.names[old]
		delete(from.names, old)
	case "rm":
		for _, path := range args {
			folder, name := f.at(path)
			delete(folder.names, name)
		}
	case "sync":
		for _, path := range args {
			n := f.top
			if folder, name := f.at(path); folder != nil {
				n = folder.names[name]
			} else if path != f.root {
				continue
			}
			n.synced, n.stored = n.data, maps.Clone(n.names)
		}
	default:
		f.t.Fatalf("the disk does not know %s", command)
	}
}

// lose makes the real folder what a loss of power leaves, and returns a text that is the same for the same content.
func (f *forgetful) lose(l loss) string {
	f.t.Helper()
	testenv.NoError(f.t, os.RemoveAll(f.root))
	var text strings.Builder
	f.write(&text, f.root, f.top, l)
	return text.String()
}

func (f *forgetful) mkdir(path string) {
	rel, inside := strings.CutPrefix(path, f.root+"/")
	if !inside {
		return
	}
	here := f.top
	for part := range strings.SplitSeq(rel, "/") {
		if here.names[part] == nil {
			here.names[part] = newFolder()
		}
		here = here.names[part]
	}
}

func (f *forgetful) write(text *strings.Builder, path string, n *node, l loss) {
	f.t.Helper()
	fmt.Fprintf(text, "%s %v %s\n", path, n.mode, n.target)
	switch {
	case n.names != nil:
		testenv.NoError(f.t, os.Mkdir(path, 0o755))
		all := maps.Clone(n.stored)
		maps.Copy(all, n.names)
		for _, name := range slices.Sorted(maps.Keys(all)) {
			child := n.stored[name]
			if l.names() {
				child = n.names[name]
			}
			if child != nil {
				f.write(text, filepath.Join(path, name), child, l)
			}
		}
	case n.target != "":
		testenv.NoError(f.t, os.Symlink(n.target, path))
	default:
		data := n.synced
		if l.data() {
			data = n.data
		}
		fmt.Fprintf(text, "%q\n", data)
		testenv.NoError(f.t, os.WriteFile(path, data, n.mode))
	}
}
