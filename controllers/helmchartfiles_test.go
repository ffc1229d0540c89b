// SPDX-License-Identifier: Apache-2.0

package controllers_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/controllers/helmcharts"
	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// put lays a chart's file into the folder, as a whole, with a time that no other one has.
func (h *charts) put(name, text string) {
	h.t.Helper()
	h.age++
	path, at := filepath.Join(h.folder, name), time.Unix(1_700_000_000+h.age, 0)
	err := os.WriteFile(path+".new", []byte(text), 0o644)
	if err == nil {
		err = os.Chtimes(path+".new", at, at)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	testenv.NoError(h.t, err)
}

// appliedOf counts how often Helm was asked to make a release.
func (h *charts) appliedOf(release string) (n int) {
	for _, q := range h.requests() {
		if q.Release == release && q.Operation == helmjob.Apply {
			n++
		}
	}
	return n
}

// awaitFile waits until a chart says that this server lacks its file, or does not say it, and is ready then.
func (h *charts) awaitFile(name string, lacking bool) {
	h.t.Helper()
	eventually(h.t, fmt.Sprintf("%s lacks its file: %t", name, lacking), func(context.Context) error {
		c := h.await(name, helmcharts.ReasonDeployed)
		if got := strings.Contains(fmt.Sprint(c.Status.Conditions), "The server node-1, which leads, has no file "+name+".tgz"); got != lacking {
			return fmt.Errorf("it says %+v", c.Status)
		}
		return nil
	})
}

// files: a chart that is a file is upgraded when another one takes its place, not for a copy of it, and stays as it is
// while it is away.
func (h *charts) files(t *testing.T) {
	h.t = t
	h.put("a-file.tgz", "one")
	h.put("b-file.tgz", "one")
	for _, name := range []string{"a-file", "b-file"} {
		h.create(name, map[string]any{"chart": name + ".tgz"})
		h.awaitRevision(name, 1)
	}
	h.put("a-file.tgz", "one")
	h.put("b-file.tgz", "two") // it is looked at after the other one
	h.awaitRevision("b-file", 2)
	h.awaitRevision("a-file", 1)
	testenv.NoError(t, os.Remove(filepath.Join(h.folder, "b-file.tgz")))
	h.awaitFile("b-file", true)
	h.awaitEvent("b-file", helmcharts.ReasonFileMissing, "has no file b-file.tgz")
	h.put("b-file.tgz", "two")
	h.awaitFile("b-file", false)
	h.put("b-file.tgz", "three")
	h.awaitRevision("b-file", 3)
	for name, want := range map[string]int{"a-file": 1, "b-file": 3} {
		h.removed(name)
		if got := h.appliedOf(name); got != want {
			t.Errorf("Helm was asked %d times for %s, want %d", got, name, want)
		}
	}
}

// filesOfNext: a leader that has a copy of a chart's file, or lacks it, leaves the release as it is, and says which it
// lacks.
func (h *charts) filesOfNext(t *testing.T) {
	h.t = t
	end := h.begin()
	for _, name := range []string{"copied", "lacking"} {
		h.put(name+".tgz", "one")
		h.create(name, map[string]any{"chart": name + ".tgz"})
		h.awaitRevision(name, 1)
	}
	end()
	h.folder = t.TempDir()
	h.put("copied.tgz", "one")
	end = h.begin()
	h.awaitFile("lacking", true)
	h.awaitFile("copied", false)
	h.put("lacking.tgz", "two")
	h.awaitRevision("lacking", 2)
	h.awaitFile("lacking", false)
	for name, want := range map[string]int{"copied": 1, "lacking": 2} {
		h.removed(name)
		if got := h.appliedOf(name); got != want {
			t.Errorf("Helm was asked %d times for %s, want %d", got, name, want)
		}
	}
	end()
}
