// SPDX-License-Identifier: Apache-2.0

package images

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
)

// ImportOnce imports one small archive with the image of the given name. It does nothing if the index has this very
// archive and the image is still complete.
func ImportOnce(ctx context.Context, store Store, archive, name, recordFile string) error {
	data, err := os.ReadFile(archive)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(data)
	want := entry{Size: int64(len(data)), SHA256: hex.EncodeToString(sum[:])}
	record, err := loadIndex(recordFile)
	if err != nil {
		return err
	}
	if complete, err := store.Complete(ctx, name); err != nil {
		return err
	} else if complete && record[name].SHA256 == want.SHA256 {
		return nil
	}
	if want.Images, err = store.Import(ctx, bytes.NewReader(data), FallbackName(archive), Origin{}); err != nil {
		return fmt.Errorf("import %s: %w", archive, err)
	}
	if complete, err := store.Complete(ctx, name); err != nil || !complete {
		return errors.Join(fmt.Errorf("%s does not hold the image %s", archive, name), err)
	}
	return saveIndex(recordFile, map[string]entry{name: want})
}
