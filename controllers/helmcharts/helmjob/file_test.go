// SPDX-License-Identifier: Apache-2.0

package helmjob_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestUnpackedChartsSumIgnoresLocation: two unpacked charts have the same sum if they have the same files with the same
// names, wherever these lie.
func TestUnpackedChartsSumIgnoresLocation(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	write := func(name, text string) {
		t.Helper()
		err := os.MkdirAll(filepath.Dir(at(name)), 0o755)
		if err == nil {
			err = os.WriteFile(at(name), []byte(text), 0o644)
		}
		testenv.NoError(t, err)
	}
	link := func(to, name string) {
		t.Helper()
		testenv.NoError(t, os.Symlink(to, at(name)))
	}
	sum := func(name string) string {
		t.Helper()
		s, err := helmjob.SumFile(at(name))
		testenv.False(t, err != nil || len(s) != 64, "the sum of %s is %q: %v", name, s, err)
		return s
	}
	for chart, image := range map[string]string{"app-1": "one", "app-2": "two", "copy-of-1": "one"} {
		write(chart+"/Chart.yaml", "name: app")
		write(chart+"/templates/pod.yaml", image)
		write(chart+"/templates.txt", "beside")
	}
	one, two := sum("app-1"), sum("app-2")
	if one == two || sum("copy-of-1") != one {
		t.Errorf("two charts have the sums %s and %s, a copy of the first %s", one, two, sum("copy-of-1"))
	}
	link("app-1", "app")
	testenv.Equal(t, sum("app"), one, "a chart has another sum by a link to its folder:")
	testenv.NoError(t, os.Remove(at("app")))
	if link("app-2", "app"); sum("app") != two {
		t.Error("a link that leads to another chart was not noticed")
	}

	write("linked/Chart.yaml", "name: app")
	write("linked/templates.txt", "beside")
	link("../app-1/templates", "linked/templates")
	testenv.Equal(t, sum("linked"), one, "a chart has another sum where one of its folders is a link:")
	write("files/Chart.yaml", "name: app")
	write("files/templates.txt", "beside")
	link("../../app-2/templates/pod.yaml", "files/templates-of-2")
	if link("nowhere", "files/lock"); sum("files") == two {
		t.Error("the names of files do not count")
	}
	for _, name := range []string{"files/again", "files/once-more"} {
		link(".", name)
	}
	if s, err := helmjob.SumFile(at("files")); err == nil || !strings.Contains(err.Error(), "leads back") {
		t.Errorf("a chart in itself has the sum %q: %v", s, err)
	}
}
