// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// image is a directory's content, by name.
type image map[string][]byte

func readImage(t testing.TB, dir string) image {
	t.Helper()
	files := image{}
	testenv.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err == nil {
			files[name], err = os.ReadFile(path)
		}
		return err
	}))
	return files
}

func (i image) write(t testing.TB, dir string) {
	t.Helper()
	for name, data := range i {
		path := filepath.Join(dir, name)
		testenv.NoError(t, errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, data, 0o600)))
	}
}

// life is one directory at three moments: files of the earlier ones are what a
// partial restore, or a drive that lost writes, would bring back.
type life struct {
	moments []image
	entries []*raft.Log // all that was ever acknowledged, from index 1 on
}

func (l *life) last() image { return l.moments[len(l.moments)-1] }

const compactedTo = 40

func injectOptions(path string) Options {
	o := options(path)
	o.SegmentSize = 16 << 10
	return o
}

func live(t *testing.T) *life {
	t.Helper()
	path := filepath.Join(memoryDir(t), "store")
	l := &life{}
	stage := func(term uint64, vote string, to int, more func(d *Dir) error) {
		d, err := Open(injectOptions(path))
		testenv.NoError(t, err)
		err = errors.Join(d.Vars.SetUint64([]byte("CurrentTerm"), term), d.Vars.SetUint64([]byte("LastVoteTerm"), term),
			d.Vars.Set([]byte("LastVoteCand"), []byte(vote)))
		for len(l.entries) < to && err == nil {
			i := uint64(len(l.entries) + 1)
			e := &raft.Log{Index: i, Term: term, Type: raft.LogCommand, Data: bytes.Repeat([]byte{byte(i)}, int(i*i*7)%3000)}
			l.entries = append(l.entries, e)
			err = d.Log.StoreLog(e)
		}
		err = errors.Join(err, more(d), d.Close())
		testenv.NoError(t, err)
		files := readImage(t, path)
		delete(files, "LOCK")
		l.moments = append(l.moments, files)
	}
	stage(2, "a", 60, func(d *Dir) error {
		return errors.Join(writeSnapshotOf(d, 20, 2, "state of 20"), d.SavePeers([]Peer{{"x", "y"}}))
	})
	stage(3, "a", 118, func(d *Dir) error {
		return errors.Join(writeSnapshotOf(d, compactedTo, 2, strings.Repeat("state of 40", 500)), d.Log.DeleteRange(1, compactedTo-10))
	})
	// The same files, a little further, and another vote in the same term.
	stage(3, "b", 120, func(*Dir) error { return nil })
	return l
}

// kinds are the classes of files, each with one file of it in the last moment.
func (l *life) kinds(t *testing.T) map[string]string {
	t.Helper()
	var segments []string
	kinds := map[string]string{"identity": identityFile, "variables": varsFile, "peers": peersFile, "reserve": reserveFile}
	for _, name := range slices.Sorted(maps.Keys(l.last())) {
		switch {
		case strings.HasSuffix(name, segmentSuffix):
			segments = append(segments, name)
		case strings.HasSuffix(name, snapshotSuffix):
			kinds["snapshot"] = name
		}
	}
	testenv.Require(t, len(segments) >= 4, "segments: %v", segments)
	kinds["first segment"], kinds["middle segment"] = segments[0], segments[len(segments)/2]
	kinds["newest segment"] = segments[len(segments)-1]
	return kinds
}
