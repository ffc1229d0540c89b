// SPDX-License-Identifier: Apache-2.0

package helmcharts

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
	"github.com/coracle-k8s/coracle/controllers/helmcharts/kinds"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// shelf is two folders of charts.
type shelf struct {
	*files
	t *testing.T
}

func newShelf(t *testing.T) shelf {
	t.Helper()
	return shelf{&files{folders: []string{filepath.Join(t.TempDir(), "none"), t.TempDir(), t.TempDir()}, read: map[string]cachedSum{}}, t}
}

// put writes a file into a folder, as one of that age.
func (s shelf) put(folder int, name, text string, at time.Time) string {
	s.t.Helper()
	path := filepath.Join(s.folders[folder], name)
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.WriteFile(path, []byte(text), 0o644)
	}
	if err == nil {
		err = os.Chtimes(path, at, at)
	}
	testenv.NoError(s.t, err)
	return path
}

func (s shelf) mustSum(name string) string {
	s.t.Helper()
	sum, err := s.sum(name)
	testenv.Require(s.t, err == nil && sum != "", "%s is %q, %v", name, sum, err)
	return sum
}

// TestChartFileIsKnownByItsContent: a chart is identified by what is in it, and is read no more often than it changes.
func TestChartFileIsKnownByItsContent(t *testing.T) {
	s := newShelf(t)
	path := s.put(1, "web.tgz", "one", testNow)
	one := s.mustSum("web.tgz")
	s.put(1, "web.tgz", "one", testNow.Add(time.Hour))
	testenv.Equal(t, s.mustSum("web.tgz"), one, "a copy with another time is another chart:")
	s.put(1, "web.tgz", "two", testNow.Add(time.Hour)) // as no editor leaves it: neither size nor time nor file is another
	testenv.Equal(t, s.mustSum("web.tgz"), one, "a file was read that looks as it did:")
	testenv.NoError(t, os.Rename(s.put(1, "new", "two", testNow.Add(time.Hour)), path))
	two := s.mustSum("web.tgz")
	testenv.True(t, two != one, "another file under the name was not noticed")
	if s.put(2, "web.tgz", "one", testNow); s.mustSum("web.tgz") != two {
		t.Error("the second folder counts before the first")
	}
	testenv.NoError(t, os.Remove(path))
	testenv.Equal(t, s.mustSum("web.tgz"), one, "the second folder does not count without the first:")

	s.put(1, "open/templates/a.yaml", "one", testNow)
	open := s.mustSum("open")
	if s.put(1, "open/templates/a.yaml", "two!", testNow); s.mustSum("open") == open {
		t.Error("a change within an unpacked chart was not noticed")
	}

	s.put(1, "versions/1/a.yaml", "one", testNow)
	s.put(1, "versions/2/a.yaml", "two", testNow)
	current := filepath.Join(s.folders[1], "current")
	sums := map[string]bool{}
	for _, version := range []string{"1", "2"} {
		testenv.NoError(t, errors.Join(os.RemoveAll(current), os.Symlink("versions/"+version, current)))
		sums[s.mustSum("current")] = true
	}
	if s.put(1, "versions/2/a.yaml", "three", testNow); sums[s.mustSum("current")] {
		t.Error("a change behind a link was not noticed")
	}
	testenv.Equal(t, len(sums), 2, "a link that leads to another version was not noticed:")
}

// TestNonChartFilesAreRefused: what is no chart is neither waited for nor read to its end.
func TestNonChartFilesAreRefused(t *testing.T) {
	s := newShelf(t)
	r := reader{files: s.files, server: "node-1"}
	_, err := s.sum("none.tgz")
	if message := r.lacking("none.tgz", err); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(message, "The server node-1, which leads, has no file none.tgz") || !strings.Contains(message, s.folders[2]) {
		t.Errorf("of a file that is not there: %v, %q", err, message)
	}
	testenv.NoError(t, unix.Mkfifo(filepath.Join(s.folders[1], "pipe.tgz"), 0o600))
	_, err = s.sum("pipe.tgz")
	testenv.Contains(t, r.lacking("pipe.tgz", err), "cannot read the chart's file", "of a pipe: %v,", err)
	large := s.put(1, "large.tgz", "", testNow)
	testenv.NoError(t, os.Truncate(large, helmjob.MaxArchive+1))
	testenv.Equal(t, s.mustSum("large.tgz"), "104857601 bytes", "a file that is too large is")
}

func TestChartFileIsFoundFromSpec(t *testing.T) {
	for _, tt := range []struct {
		spec kinds.ChartSpec
		want string
	}{
		{kinds.ChartSpec{Chart: "web.tgz"}, "web.tgz"},
		{kinds.ChartSpec{Chart: "https://%{KUBERNETES_API}%/static/charts/web.tgz"}, "web.tgz"},
		{kinds.ChartSpec{Chart: "web.tgz", ChartContent: "sha256:1"}, ""},
		{kinds.ChartSpec{Chart: "web.tgz", Repo: "https://charts.example"}, ""},
	} {
		testenv.Equal(t, fileOf(&kinds.HelmChart{Spec: tt.spec}), tt.want, "%+v is the file", tt.spec)
	}
}

// TestFileIsReadOnceItSettled: a change of a file is taken up when the file has been the same for a moment.
func TestFileIsReadOnceItSettled(t *testing.T) {
	s := newShelf(t)
	path := s.put(1, "web.tgz", "one", testNow)
	e := seenFile{read: s.stat("web.tgz")}
	now := testNow
	step := func(what string, wantStale bool, wantAgain time.Duration) {
		t.Helper()
		stale, again := s.follow("web.tgz", &e, filesEvery, now)
		if stale != wantStale || again.Sub(now) != wantAgain {
			t.Errorf("%s: read again %t, looked at again after %s; want %t, %s", what, stale, again.Sub(now), wantStale, wantAgain)
		}
	}
	step("nothing has changed", false, filesEvery)
	s.put(1, "web.tgz", "on", testNow)
	step("a copy is on its way", false, settleTime)
	now = now.Add(settleTime / 2)
	step("it is looked at early", false, settleTime/2)
	s.put(1, "web.tgz", "one more", testNow)
	now = now.Add(settleTime)
	step("it has grown", false, settleTime)
	now = now.Add(settleTime)
	step("it has not", true, filesEvery)
	e = seenFile{read: s.stat("web.tgz")}
	step("it was read", false, filesEvery)

	testenv.NoError(t, os.Rename(path, path+"-away"))
	step("it is gone", false, settleTime)
	testenv.NoError(t, os.Rename(path+"-away", path))
	now = now.Add(settleTime)
	step("it was gone for a moment", false, filesEvery)
	e = seenFile{} // it was there, and could not be read
	step("unread", false, settleTime)
	now = now.Add(settleTime)
	step("still unread", true, filesEvery)
}
