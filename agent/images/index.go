// SPDX-License-Identifier: Apache-2.0

package images

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

// entry is what the index says of one imported archive: the file as it was then, and the images in it.
type entry struct {
	Size    int64     `json:"size"`
	ModTime time.Time `json:"modTime"`
	SHA256  string    `json:"sha256"`
	Images  []string  `json:"images"`
}

// isUnchanged reports whether the file has the size and time that it had when it was imported.
func (e entry) isUnchanged(info fs.FileInfo) bool {
	return e.Size == info.Size() && e.ModTime.Equal(info.ModTime())
}

// hasImage reports whether the archive had an image of that name.
func (e entry) hasImage(image string) bool { return slices.Contains(e.Images, image) }

// loadIndex reads the index. A damaged index counts as empty: importing again costs only time.
func loadIndex(path string) (map[string]entry, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return map[string]entry{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the record of imported archives: %w", err)
	}
	record := map[string]entry{}
	if json.Unmarshal(data, &record) != nil {
		return map[string]entry{}, nil
	}
	return record, nil
}

func saveIndex(path string, record map[string]entry) error {
	if err := atomicfile.WriteJSON(path, record, 0o600); err != nil {
		return fmt.Errorf("keep the record of imported archives: %w", err)
	}
	return nil
}
