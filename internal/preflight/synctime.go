// SPDX-License-Identifier: Apache-2.0

// This file measures the time until a small write has reached the disk. The store waits for that more than for anything
// else. The code owns the file that it writes meanwhile.

package preflight

import (
	"errors"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const blockSize = 4096

// Median makes several writes of one block, each with fdatasync, and returns the median of their times. It writes into
// a file in dir whose space has been allocated before, as with the store's log.
func Median(dir string, writes int) (d time.Duration, err error) {
	f, err := os.CreateTemp(dir, ".coracle-sync-*")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(f.Name())) }()
	if _, err := f.Write(make([]byte, blockSize*writes)); err != nil {
		return 0, err
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	data := make([]byte, blockSize)
	data[0] = 1
	times := make([]time.Duration, writes)
	for i := range times {
		began := time.Now()
		if _, err := f.WriteAt(data, int64(i)*blockSize); err != nil {
			return 0, err
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return 0, err
		}
		times[i] = time.Since(began)
	}
	slices.Sort(times)
	return times[writes/2], nil
}
