// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"os"
	"time"
)

// Size returns the size of the log's files, in bytes.
func (l *Log) Size() int64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	var size int64
	for _, s := range l.segments {
		size += s.length
	}
	return size
}

// Newest returns the size of the newest snapshot, in bytes, and when it was completed. Both are zero if there is none.
func (s *Snapshots) Newest() (size int64, completed time.Time) {
	ids, err := s.ids()
	if err != nil || len(ids) == 0 {
		return 0, time.Time{}
	}
	info, err := os.Stat(s.path(ids[0]))
	if err != nil { // a newer snapshot has just replaced it
		return 0, time.Time{}
	}
	return info.Size(), info.ModTime()
}

// Refusing returns why new writes are refused, as far as was last seen, or nil. Unlike Admit, it does not check the
// disk.
func (d *Dir) Refusing() error {
	d.space.mu.Lock()
	defer d.space.mu.Unlock()
	return d.space.refusal
}
