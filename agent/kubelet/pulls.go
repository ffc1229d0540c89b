// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"k8s.io/klog/v2"
	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"
	"k8s.io/kubernetes/pkg/kubelet/images/pullmanager"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/internal/kubecompat"
)

// flushedPulls is a manager of image pulls that flushes its records to the disk. Upstream writes a record without that,
// so a power cut within half a minute leaves an empty file, and then a pod needs the registry for an image that is
// complete on the node. An empty record still means that: without it, each tenant could use each other's images.
type flushedPulls struct {
	pullmanager.ImagePullManager
	dir    string // of the records
	flush  func(path string) error
	onLost func(images []string) // may be nil

	mu    sync.Mutex
	names map[string]string // images whose record cannot be read, by their imageRef
}

// RecordImagePulled records that an image was pulled. The record is on the disk when it returns.
func (m *flushedPulls) RecordImagePulled(ctx context.Context, image, imageRef string, c *kubeletconfig.ImagePullCredentials) {
	m.flushing(ctx, imageRef, func() { m.ImagePullManager.RecordImagePulled(ctx, image, imageRef, c) })
	m.recordLost(imageRef, "")
}

// MustAttemptImagePull reports whether a pod needs the registry for an image. Upstream may write a record here too.
func (m *flushedPulls) MustAttemptImagePull(ctx context.Context, image, imageRef string,
	credentials pullmanager.GetPodCredentials) (must bool, err error) {
	m.flushing(ctx, imageRef, func() { must, err = m.ImagePullManager.MustAttemptImagePull(ctx, image, imageRef, credentials) })
	if record, readErr := os.ReadFile(m.record(imageRef)); must && readErr == nil && !json.Valid(record) {
		m.recordLost(imageRef, image)
	}
	return must, err
}

// record returns the path of an image's record.
func (m *flushedPulls) record(imageRef string) string {
	return filepath.Join(m.dir, recordName(imageRef))
}

// recordName returns the name of the file of an image's record, as upstream forms it.
func recordName(imageRef string) string {
	return fmt.Sprintf("sha256-%x", sha256.Sum256([]byte(imageRef)))
}

// flushing calls a function of upstream's and flushes the record if the function has replaced it.
func (m *flushedPulls) flushing(ctx context.Context, imageRef string, call func()) {
	before, _ := os.Stat(m.record(imageRef)) // nil: there was none
	call()
	after, err := os.Stat(m.record(imageRef))
	if err != nil || before != nil && os.SameFile(before, after) {
		return
	}
	for _, path := range []string{m.record(imageRef), m.dir} {
		if err := m.flush(path); err != nil {
			klog.FromContext(ctx).Error(err, "After a power cut within the next minute, an image needs its registry once more")
		}
	}
}

// recordLost notes the name of an image whose record was lost. An empty name means that the image has a record again.
func (m *flushedPulls) recordLost(imageRef, image string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.names[imageRef] == image || m.onLost == nil {
		return
	}
	if m.names[imageRef] = image; image == "" {
		delete(m.names, imageRef)
	}
	m.onLost(slices.Sorted(maps.Values(m.names)))
}

// flushPulls makes a kubelet that is not running yet use flushedPulls. root is the kubelet's folder.
func flushPulls(kubelet any, root string, lost func(images []string)) error {
	manager, err := kubecompat.Field[pullmanager.ImagePullManager](kubelet, pullManagerFieldPath)
	if err != nil {
		return err
	}
	*manager = &flushedPulls{
		ImagePullManager: *manager, dir: filepath.Join(root, pulledFolder), flush: atomicfile.SyncDir, onLost: lost,
		names: map[string]string{},
	}
	return nil
}
