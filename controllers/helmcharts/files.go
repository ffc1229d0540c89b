// SPDX-License-Identifier: Apache-2.0

package helmcharts

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
	"github.com/coracle-k8s/coracle/controllers/helmcharts/kinds"
)

const (
	// filesEvery is how often the files of charts are looked at, where there are such charts. The kernel's notices
	// would have to be asked for in folders that need not be there.
	filesEvery = 15 * time.Second
	// settled is how long a file that has changed has to stay the same before it is read: it may be on its way.
	settled = 2 * time.Second
)

// files are charts that lie on this machine, identified by their content: a copy of a chart is the same chart. One is
// read when its size, its time, or the file itself is another one than when it was read last. It is the loop's alone.
type files struct {
	folders []string
	read    map[string]cachedSum // by the chart's name in a folder
}

type cachedSum struct {
	seen fileState
	sum  string
}

// fileState is what can be seen of a chart without reading it. The zero fileState is of none that was looked at.
type fileState struct {
	path   string
	info   fs.FileInfo
	inside string // of an unpacked chart
	err    error  // fs.ErrNotExist where no folder has it
}

func (l fileState) same(as fileState) bool {
	if l.path != as.path || l.inside != as.inside || fmt.Sprint(l.err) != fmt.Sprint(as.err) || (l.info == nil) != (as.info == nil) {
		return false
	}
	return l.info == nil || os.SameFile(l.info, as.info) && l.info.Size() == as.info.Size() && l.info.ModTime().Equal(as.info.ModTime())
}

// stat looks for a chart in the folders; the first that has it counts, as it does for Helm's process.
func (f *files) stat(name string) fileState {
	for _, folder := range f.folders {
		l := fileState{path: filepath.Join(folder, filepath.FromSlash(name))}
		if l.info, l.err = os.Stat(l.path); errors.Is(l.err, fs.ErrNotExist) {
			continue
		}
		if l.err == nil && l.info.IsDir() {
			l.inside, l.err = contents(l.path)
		}
		return l
	}
	return fileState{err: fs.ErrNotExist}
}

// contents are the names, sizes and times of a folder's files.
func contents(folder string) (string, error) {
	var out strings.Builder
	err := helmjob.EachFile(folder, func(name string, info fs.FileInfo) error {
		_, err := fmt.Fprintf(&out, "%q %d %d\n", name, info.Size(), info.ModTime().UnixNano())
		return err
	})
	return out.String(), err
}

// sum is what a chart's content comes to.
func (f *files) sum(name string) (string, error) {
	l := f.stat(name) // before it is read: what changes meanwhile is read once more
	if l.err != nil {
		return "", l.err
	}
	if was, ok := f.read[name]; ok && was.seen.same(l) {
		return was.sum, nil
	}
	sum := fmt.Sprintf("%d bytes", l.info.Size())
	if l.info.IsDir() || l.info.Size() <= helmjob.MaxArchive { // others are refused, and need not be read for that
		var err error
		if sum, err = helmjob.SumFile(l.path); err != nil {
			return "", err
		}
	}
	f.read[name] = cachedSum{l, sum}
	return sum, nil
}

// fileOf is the name of a chart that is a file, "" for others.
func fileOf(c *kinds.HelmChart) string {
	if c.Spec.ChartContent != "" {
		return ""
	}
	named := helmjob.Chart{Name: c.Spec.Chart, Repo: c.Spec.Repo}
	name, _ := named.LocalFile()
	return name
}

// seen is what an entry knows of its chart's file.
type seen struct {
	read    fileState // when it was read
	changed fileState // since then
	at      time.Time
}

// follow looks at a chart's file. It says whether the chart is to be read again, and when to look again at the latest.
func (f *files) follow(name string, s *seen, every time.Duration, now time.Time) (stale bool, again time.Time) {
	l := f.stat(name)
	wait := min(settled, every)
	switch {
	case l.same(s.read):
		s.changed = fileState{}
		return false, now.Add(every)
	case !l.same(s.changed):
		s.changed, s.at = l, now
		return false, now.Add(wait)
	case now.Sub(s.at) < wait:
		return false, s.at.Add(wait)
	}
	return true, now.Add(every)
}

// lacking says that this server has no such chart, or cannot read it; "" where it can.
func (r reader) lacking(name string, err error) string {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Sprintf("The server %s, which leads, has no file %s among its charts (%s).", r.server, name,
			strings.Join(r.files.folders, ", "))
	default:
		return fmt.Sprintf("The server %s, which leads, cannot read the chart's file: %v.", r.server, err)
	}
}
