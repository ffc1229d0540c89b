// SPDX-License-Identifier: Apache-2.0

package snapshots

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// withS3 has a machine keep its snapshots on S3 too, with these settings over the fake's.
func (m *machine) withS3(f *fakeS3, change map[string]string) *config.S3 {
	m.t.Helper()
	settings := mustS3(m.t, config.OverlayS3(f.settings(), change))
	m.o.S3 = func(context.Context) (*config.S3, error) { return settings, nil }
	return settings
}

// TestOutageOfS3: while S3 is away from a cluster in which something changes all the time, the snapshots of the days
// before stay in the folder, and what is tried again is the copy alone.
func TestOutageOfS3(t *testing.T) {
	f, m := newFakeS3(t), newMachine(t)
	m.withS3(f, nil)
	board := m.scheduler()
	change := func() { m.Put("/registry/pods/a/one", m.Clock.Now().String()) }
	for range 3 {
		change()
		m.pass(12 * time.Hour)
	}
	deny := func(deny bool) {
		f.mu.Lock()
		f.deny = deny
		f.mu.Unlock()
	}
	deny(true)
	change()
	m.pass(12 * time.Hour)
	want := m.scheduledInFolder()
	testenv.Require(t, len(want) == 4, "here are %q", want)
	for range 20 { // five hours
		change()
		m.pass(retryDelay)
	}
	if got := m.scheduledInFolder(); !slices.Equal(got, want) {
		t.Errorf("after an outage of five hours here are %q, before it there were %q", got, want)
	}
	if c := board.Components()[0]; c.State != status.Degraded || !strings.Contains(c.Message, want[3]+" is on this machine, but not in the object store") {
		t.Errorf("%+v", c)
	}
	deny(false)
	m.pass(retryDelay)
	if c := board.Components()[0]; c.State != status.Running || len(f.keys()) != 2 || f.keys()[1] != "a/b/"+want[3] {
		t.Errorf("%+v; on S3 %q, want %s", c, f.keys(), want[3])
	}
	// The schedule has gone on meanwhile.
	m.pass(12*time.Hour - 22*retryDelay)
	testenv.Equal(t, len(m.scheduledInFolder()), 4, "before its time:")
	m.pass(2 * retryDelay)
	if got := m.scheduledInFolder(); len(got) != 5 || len(f.keys()) != 2 || f.keys()[1] != "a/b/"+got[4] {
		t.Errorf("here are %q, on S3 %q", got, f.keys())
	}
	// The schedule's time comes while a copy is waited for: then there is another one.
	deny(true)
	change()
	m.pass(12 * time.Hour) // a quarter past midnight
	before := m.scheduledInFolder()
	change()
	m.pass(12*time.Hour - retryDelay)
	if after := m.scheduledInFolder(); len(after) != 5 || after[4] == before[4] {
		t.Errorf("at its time: %q, before %q", after, before)
	}
	// A user removes the file that waits for its copy: another one is taken.
	deny(false)
	testenv.NoError(t, os.Remove(filepath.Join(m.o.Dir, m.scheduledInFolder()[4])))
	change()
	m.pass(retryDelay)
	if here := m.scheduledInFolder(); len(here) != 5 || f.keys()[1] != "a/b/"+here[4] {
		t.Errorf("here are %q, on S3 %q", here, f.keys())
	}
}

// TestTwoClustersInOneFolder: their servers have one name, and the same schedule, so that their snapshots have one name
// too. Neither takes the other's away, and it is said.
func TestTwoClustersInOneFolder(t *testing.T) {
	f, first, second := newFakeS3(t), newMachine(t), newMachine(t)
	first.withS3(f, nil)
	second.withS3(f, nil)
	first.Put("/registry/pods/a/one", "1")
	second.Put("/registry/pods/a/one", "2")
	testenv.NoError(t, first.scheduled(t.Context()))
	key := f.keys()[0]
	whole := f.objects[key]
	for range 2 { // it is tried again
		testenv.WantError(t, second.scheduled(t.Context()), "a folder of its own")
	}
	if keys := f.keys(); len(keys) != 1 || !bytes.Equal(f.objects[key], whole) {
		t.Errorf("the first cluster's snapshot is no longer what it was; there are %q", keys)
	}
	testenv.Check(t, first.scheduled(t.Context()), "the first cluster says")
	second.withS3(f, map[string]string{config.S3Folder: "second"})
	testenv.Check(t, second.scheduled(t.Context()), "with a folder of its own")
	// Of one length, and put there after it was looked for.
	other := bytes.Replace(whole, []byte(first.o.Cluster), bytes.Repeat([]byte("0"), len(first.o.Cluster)), 1)
	f.mu.Lock()
	delete(f.objects, key)
	f.after = func(r *http.Request) {
		if r.Method == http.MethodPut {
			f.objects[key] = other
		}
	}
	f.mu.Unlock()
	testenv.WantError(t, first.scheduled(t.Context()), "a folder of its own")
}

// TestPartialS3ObjectIsUploadedAgain: what an S3 server has taken half of is put there again.
func TestPartialS3ObjectIsUploadedAgain(t *testing.T) {
	f, m := newFakeS3(t), newMachine(t)
	m.withS3(f, nil)
	m.Put("/registry/pods/a/one", "1")
	testenv.NoError(t, m.scheduled(t.Context()))
	key := f.keys()[0]
	whole := f.objects[key]
	for _, n := range []int{0, 10, 100, len(whole) - 1} {
		f.objects[key] = whole[:n:n]
		if err := m.scheduled(t.Context()); err != nil || !bytes.Equal(f.objects[key], whole) {
			t.Errorf("of %d bytes there are %d afterwards: %v", n, len(f.objects[key]), err)
		}
	}
}

// TestManyObjectsOfOthers: S3 lists a thousand objects at once. Those of other programs are not looked at for pruning,
// whose time they would take.
func TestManyObjectsOfOthers(t *testing.T) {
	f, m := newFakeS3(t), newMachine(t)
	m.withS3(f, nil)
	m.MustSave()
	second := m.MustSave()
	third := m.MustSave()
	for i := range 600 {
		f.objects[fmt.Sprintf("a/b/other-%04d", i)] = []byte("another program's")
		f.objects[fmt.Sprintf("a/b/on-demand-board1-%04d", i)] = []byte("another program's")
	}
	f.objects["a/b/z-copy"] = f.objects["a/b/"+second.Name]
	f.objects["a/b/"], f.objects["a/b/..\n\x1b[2J"], f.objects["a/b/c/"+second.Name] = []byte(""), []byte("x"), f.objects["a/b/"+second.Name]
	before := f.asked(http.MethodGet)
	testenv.Equal(t, len(testenv.Must(m.Prune(t.Context(), "", 2))(t)), 1, "pruned")
	if n := f.asked(http.MethodGet) - before; n > 10 {
		t.Errorf("pruning one of three asked for %d objects and lists", n)
	}
	list, err := m.List(t.Context())
	testenv.True(t, err == nil && len(list) == 5 && list[2].Name == second.Name && list[3].Name == "z-copy" && list[4].Name == third.Name,
		"%+v, %v", list, err)
}

// TestRangesAreNotHeeded: an S3 server, or a proxy before it, may send all of an object.
func TestRangesAreNotHeeded(t *testing.T) {
	f, m := newFakeS3(t), newMachine(t)
	settings := m.withS3(f, nil)
	f.whole = true
	info := m.MustSave()
	f.objects["a/b/big"] = append(bytes.Clone(f.objects["a/b/"+info.Name]), make([]byte, 1<<20)...)
	b := testenv.Must(openBucket(settings))(t)
	defer b.close()
	if start, err := b.start(t.Context(), "big"); err != nil || len(start) != startSize {
		t.Errorf("%d bytes are read to see what it is: %v", len(start), err)
	}
	if list, err := m.List(t.Context()); err != nil || len(list) != 3 || list[1].Problem != "" || list[2].Problem != "" {
		t.Errorf("%+v, %v", list, err)
	}
}

// TestFetchIsAllOrNothing: what is damaged on its way, or replaced meanwhile, does not get the snapshot's name here, so
// that the next try fetches it again.
func TestFetchIsAllOrNothing(t *testing.T) {
	f, m := newFakeS3(t), newMachine(t)
	settings := m.withS3(f, nil)
	info := m.MustSave()
	key := "a/b/" + info.Name
	whole, dir := f.objects[key], t.TempDir()
	changed := bytes.Clone(whole)
	changed[len(changed)/2] ^= 1
	replaced := func(r *http.Request) {
		if r.Method == http.MethodHead {
			f.objects[key] = changed
		}
	}
	for _, c := range []struct {
		what, message string
		object        []byte
		after         func(r *http.Request)
	}{
		{"changed", "checksum", changed, nil},
		{"cut", "", whole[:len(whole)-1], nil},
		{"another thing", "no snapshot", []byte("notes"), nil},
		{"replaced meanwhile", "", whole, replaced},
	} {
		f.mu.Lock()
		f.objects[key], f.after = c.object, c.after
		f.mu.Unlock()
		path, err := Fetch(t.Context(), settings, info.Name, dir)
		testenv.False(t, err == nil || !strings.Contains(err.Error(), c.message), "%s: %s, %v", c.what, path, err)
		if left := names(t, dir); len(left) > 0 {
			t.Errorf("%s: it left %q", c.what, left)
		}
	}
	f.objects[key], f.after = whole, nil
	testenv.Equal(t, testenv.Must(Fetch(t.Context(), settings, info.Name, dir))(t), filepath.Join(dir, info.Name), "at last:")
	for _, name := range []string{"../x", "..", "a/b", "", "a\nb", "/etc/passwd"} {
		if path, err := Fetch(t.Context(), settings, name, dir); err == nil {
			t.Errorf("%q was fetched to %s", name, path)
		}
	}
}
