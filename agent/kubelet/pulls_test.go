// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/kubelet/images/pullmanager"

	"github.com/coracle-k8s/coracle/internal/kubecompat"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// flushed makes the puller flush its records, and returns which files were flushed and which images have lost theirs.
func (p *puller) flushed(t *testing.T, root string) (files *[]string, lost *[]string) {
	t.Helper()
	files, lost = new([]string), new([]string)
	testenv.NoError(t, flushPulls(p, root, func(images []string) { *lost = images }))
	manager, ok := (*testenv.Must(kubecompat.Field[pullmanager.ImagePullManager](p, pullManagerFieldPath))(t)).(*flushedPulls)
	testenv.True(t, ok, "the kubelet has another manager of pulls")
	manager.flush = func(path string) error {
		*files = append(*files, path)
		return errors.New("a failure is logged, and nothing else")
	}
	return files, lost
}

// TestRecordOfAPullIsFlushed: a pull's record is on the disk before the kubelet goes on, and is flushed once.
func TestRecordOfAPullIsFlushed(t *testing.T) {
	root := t.TempDir()
	p := newPuller(t, root)
	files, lost := p.flushed(t, root)
	manager := *testenv.Must(kubecompat.Field[pullmanager.ImagePullManager](p, pullManagerFieldPath))(t)
	for range 2 {
		testenv.NoError(t, manager.RecordPullIntent(klog.Background(), private))
		manager.RecordImagePulled(t.Context(), private, "sha256:private", credentialsOf("tenant"))
	}
	dir := filepath.Join(root, "image_manager", "pulled")
	entries := testenv.Must(os.ReadDir(dir))(t)
	testenv.Equal(t, len(entries), 1, "records")
	testenv.EqualSlices(t, *files, []string{filepath.Join(dir, entries[0].Name()), dir}, "flushed")

	manager.RecordImagePulled(t.Context(), private, "sha256:private", credentialsOf("other"))
	testenv.Equal(t, len(*files), 4, "a changed record is flushed again:")
	testenv.Equal(t, len(*lost), 0, "lost records")
}

// TestLostRecordIsReported: a record that a power cut emptied means, as before, that a pod needs the registry, and the
// node says so until the registry was there.
func TestLostRecordIsReported(t *testing.T) {
	root := t.TempDir()
	p := newPuller(t, root)
	p.pulls.RecordImagePulled(t.Context(), private, "sha256:private", credentialsOf("tenant"))
	for _, record := range testenv.Must(filepath.Glob(filepath.Join(root, "image_manager", "pulled", "*")))(t) {
		testenv.NoError(t, os.Truncate(record, 0))
	}
	p = newPuller(t, root) // as after the boot
	_, lost := p.flushed(t, root)
	testenv.False(t, p.may(t, private, v1.PullIfNotPresent), "a pod without credentials may use an image whose record was lost")
	testenv.Equal(t, strings.Join(*lost, " "), private, "lost records")

	manager := *testenv.Must(kubecompat.Field[pullmanager.ImagePullManager](p, pullManagerFieldPath))(t)
	manager.RecordImagePulled(t.Context(), private, "sha256:private", credentialsOf("tenant")) // the registry is back
	testenv.Equal(t, len(*lost), 0, "lost records after the pull")
	testenv.False(t, p.may(t, private, v1.PullIfNotPresent), "a pod without credentials may use another tenant's image")
	testenv.Equal(t, len(*lost), 0, "lost records when another tenant asks")
}
