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
	// filesEvery is the interval of checks of charts' files, if there are such charts. The kernel's notifications would
	// need watches on folders that may not exist.
	filesEvery = 15 * time.Second
	// settleTime is the time for which a changed file has to stay unchanged before it is read, since it may still be
	// written.
	settleTime = 2 * time.Second
)

// files are charts in files on this machine, identified by their content: a copy of a chart is the same chart. A chart
// is read when its size, its time, or the file itself has changed since it was read. The loop owns files.
type files struct {
	folders []string
	read    map[string]cachedSum // by the chart's name in a folder
}

type cachedSum struct {
	file fileState
	sum  string
}

// fileState is the state of a chart's file that is known without reading it. The zero value is for a chart that was not
// checked.
type fileState struct {
	path   string
	info   fs.FileInfo
	inside string // the contents of an unpacked chart
	err    error  // fs.ErrNotExist if no folder has the chart
}

func (l fileState) equal(as fileState) bool {
	if l.path != as.path || l.inside != as.inside || fmt.Sprint(l.err) != fmt.Sprint(as.err) || (l.info == nil) != (as.info == nil) {
		return false
	}
	return l.info == nil || os.SameFile(l.info, as.info) && l.info.Size() == as.info.Size() && l.info.ModTime().Equal(as.info.ModTime())
}

// stat looks for a chart in the folders. As in Helm's process, the first folder with the chart is used.
func (f *files) stat(name string) fileState {
	for _, folder := range f.folders {
		l := fileState{path: filepath.Join(folder, filepath.FromSlash(name))}
		if l.info, l.err = os.Stat(l.path); errors.Is(l.err, fs.ErrNotExist) {
			continue
		}
		if l.err == nil && l.info.IsDir() {
			l.inside, l.err = folderContents(l.path)
		}
		return l
	}
	return fileState{err: fs.ErrNotExist}
}

// folderContents returns the names, sizes and times of a folder's files.
func folderContents(folder string) (string, error) {
	var out strings.Builder
	err := helmjob.EachFile(folder, func(name string, info fs.FileInfo) error {
		_, err := fmt.Fprintf(&out, "%q %d %d\n", name, info.Size(), info.ModTime().UnixNano())
		return err
	})
	return out.String(), err
}

// sum returns a checksum of a chart's content.
func (f *files) sum(name string) (string, error) {
	l := f.stat(name) // before it is read, so that a change meanwhile causes another read
	if l.err != nil {
		return "", l.err
	}
	if was, ok := f.read[name]; ok && was.file.equal(l) {
		return was.sum, nil
	}
	sum := fmt.Sprintf("%d bytes", l.info.Size())
	if l.info.IsDir() || l.info.Size() <= helmjob.MaxArchive { // larger ones are refused without reading them
		var err error
		if sum, err = helmjob.SumFile(l.path); err != nil {
			return "", err
		}
	}
	f.read[name] = cachedSum{l, sum}
	return sum, nil
}

// fileOf returns the name of a chart that is a file. It returns "" for others.
func fileOf(c *kinds.HelmChart) string {
	if c.Spec.ChartContent != "" {
		return ""
	}
	named := helmjob.Chart{Name: c.Spec.Chart, Repo: c.Spec.Repo}
	name, _ := named.LocalFile()
	return name
}

// seenFile is an entry's state of its chart's file.
type seenFile struct {
	read      fileState // the state when it was read
	changed   fileState // a later state that differs
	changedAt time.Time
}

// follow checks a chart's file. It returns whether the chart has to be read again, and when to check again at the
// latest.
func (f *files) follow(name string, s *seenFile, every time.Duration, now time.Time) (stale bool, again time.Time) {
	l := f.stat(name)
	wait := min(settleTime, every)
	switch {
	case l.equal(s.read):
		s.changed = fileState{}
		return false, now.Add(every)
	case !l.equal(s.changed):
		s.changed, s.changedAt = l, now
		return false, now.Add(wait)
	case now.Sub(s.changedAt) < wait:
		return false, s.changedAt.Add(wait)
	}
	return true, now.Add(every)
}

// lacking returns a message if this server has no such chart, or cannot read it. It returns "" otherwise.
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
