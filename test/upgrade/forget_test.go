//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package upgrade

import (
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A forgetful disk has folders that machines mount (fuse_test.go). It is in memory, and knows of each file what was
// written since its last sync, and of each folder which names came and went since its own. A loss of power takes both.
type forgetful struct {
	mu     sync.Mutex
	top    *inode
	last   uint64            // the number of the inode that was made last
	inodes map[uint64]*inode // those that the kernel knows since the last start
	calls  []string          // that have changed something since the last start
	off    chan struct{}     // closed while there is no power
	// before is called with each call that is to change something. Its error is the call's. after is called with each
	// that has, and reports whether the power is lost. Both may be nil, and must not use the disk.
	before func(call string, pid uint32) error
	after  func(call string, pid uint32) (lost bool)
	// asked is called before a link is read and before a folder is synced, and may wait.
	asked func(call string, pid uint32)
}

// inode is a file, a link or a folder.
type inode struct {
	number        uint64
	parent        *inode
	name          string
	mode          uint32 // with the type, as in stat(2)
	changed       time.Time
	target        string // of a link
	data, synced  []byte
	names, stored map[string]*inode // of a folder: as they are, and as the disk has them
}

func newForgetful() *forgetful {
	d := &forgetful{off: make(chan struct{})}
	d.top = d.make(nil, "", unix.S_IFDIR|0o755)
	d.start()
	return d
}

// make makes an inode that no folder has yet.
func (d *forgetful) make(parent *inode, name string, mode uint32) *inode {
	d.last++
	n := &inode{number: d.last + 100, parent: parent, name: name, mode: mode, changed: time.Now()}
	if n.is(unix.S_IFDIR) {
		n.names, n.stored = map[string]*inode{}, map[string]*inode{}
	}
	return n
}

func (n *inode) is(kind uint32) bool { return n.mode&unix.S_IFMT == kind }

// path is where an inode is on the disk.
func (n *inode) path() string {
	if n.parent == nil {
		return ""
	}
	return path.Join(n.parent.path(), n.name)
}

func (n *inode) put(name string, child *inode) {
	child.parent, child.name = n, name
	n.names[name], n.changed = child, time.Now()
}

// write changes a file. What was synced is never changed in place.
func (n *inode) write(at int, p []byte) {
	if at != len(n.data) {
		n.data = append(slices.Clone(n.data), make([]byte, max(0, at+len(p)-len(n.data)))...)
		copy(n.data[at:], p)
	} else {
		n.data = append(n.data, p...)
	}
	n.changed = time.Now()
}

// sync stores what an inode has now.
func (n *inode) sync() { n.synced, n.stored = n.data, maps.Clone(n.names) }

// at returns the inode of a path, nil if there is none.
func (d *forgetful) at(path string) *inode { return inodeAt(d.top, path) }

func inodeAt(n *inode, path string) *inode {
	for name := range strings.SplitSeq(path, "/") {
		if n = n.names[name]; n == nil {
			return nil
		}
	}
	return n
}

// folder returns a folder, which is made durable with those above it if it is missing.
func (d *forgetful) folder(path string) *inode {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.top
	for name := range strings.SplitSeq(path, "/") {
		if n.names[name] == nil {
			n.put(name, d.make(n, name, unix.S_IFDIR|0o755))
			n.stored[name] = n.names[name]
		}
		n = n.names[name]
	}
	return n
}

// do makes a call that changes something, unless the power is off.
func (d *forgetful) do(call string, pid uint32, change func() error) error {
	if d.isOff() {
		return unix.EIO
	}
	if d.before != nil {
		if err := d.before(call, pid); err != nil {
			return err
		}
	}
	if err := change(); err != nil {
		return err
	}
	d.calls = append(d.calls, call)
	if d.after != nil && d.after(call, pid) {
		close(d.off)
		return unix.EIO
	}
	return nil
}

func (d *forgetful) isOff() bool {
	select {
	case <-d.off:
		return true
	default:
		return false
	}
}

// cut ends the power, if it is on.
func (d *forgetful) cut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.isOff() {
		close(d.off)
	}
}

// start switches the disk on.
func (d *forgetful) start() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.off, d.inodes, d.calls = make(chan struct{}), map[uint64]*inode{}, nil
}

// A loss says what a loss of power leaves of what was not synced.
type loss struct{ names, data bool }

func (l loss) String() string {
	switch {
	case l.names && l.data:
		return "nothing"
	case l.names:
		return "unsynced data"
	case l.data:
		return "unsynced names"
	}
	return "all that was not synced"
}

// left returns what a loss of power leaves, and stores that.
func (d *forgetful) left(n *inode, l loss) *inode {
	out := d.make(nil, "", n.mode)
	out.changed, out.target, out.data = n.changed, n.target, n.synced
	if l.data {
		out.data = n.data
	}
	out.data = slices.Clip(out.data)
	names := n.stored
	if l.names {
		names = n.names
	}
	for name, child := range names {
		out.put(name, d.left(child, l))
	}
	out.sync()
	return out
}

// lose makes the disk what a loss of power leaves of it.
func (d *forgetful) lose(l loss) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.top = d.left(d.top, l)
}

// saved returns a copy of the disk as it is, and restore makes the disk what it was.
func (d *forgetful) saved() *inode {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.left(d.top, loss{names: true, data: true})
}

func (d *forgetful) restore(saved *inode) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.top = d.left(saved, loss{names: true, data: true})
}

// read returns a file's content or a link's target, "" if there is none.
func (d *forgetful) read(path string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch n := d.at(path); {
	case n == nil:
		return ""
	case n.is(unix.S_IFLNK):
		return n.target
	default:
		return string(n.data)
	}
}

// list returns the names in a folder, sorted.
func (d *forgetful) list(path string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.at(path)
	if n == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(n.names))
}
