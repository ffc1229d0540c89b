// SPDX-License-Identifier: Apache-2.0

package powercut

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	sectorSize = 512
	blockSize  = 4096
)

// errNotReady says that a guest did not get as far as telling what it holds.
var errNotReady = errors.New("a server was not ready in time")

// errNoPower is what a disk answers after the cut.
var errNoPower = errors.New("the power is off")

// A Disk has a volatile write cache, as real ones do. Its file holds what would
// be there after a power cut at any rate; what was written since the last flush
// is in memory, where reads find it.
type Disk struct {
	mu      sync.Mutex
	file    *os.File
	current []byte  // the file and everything written since: a private mapping
	cache   []write // since the last flush, in order
	writes  int     // how many requests changed something
	cutAt   int     // the cut comes before this request, if it is not 0
	off     chan struct{}
	lies    bool // it flushes nothing and says it did
}

// write is one request, as the guest's kernel made it.
type write struct {
	at   int64
	data []byte
}

// OpenDisk connects a disk to the power. The file is its content.
func OpenDisk(path string) (*Disk, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open a disk: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open a disk: %w", err), f.Close())
	}
	current, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("map a disk: %w", err), f.Close())
	}
	return &Disk{file: f, current: current, off: make(chan struct{})}, nil
}

// Size is the disk's, in bytes.
func (d *Disk) Size() int64 { return int64(len(d.current)) }

func (d *Disk) powered() bool {
	select {
	case <-d.off:
		return false
	default:
		return true
	}
}

func (d *Disk) check(n int, at int64) error {
	if !d.powered() {
		return errNoPower
	}
	if at < 0 || at+int64(n) > d.Size() {
		return fmt.Errorf("%d bytes at %d are beyond the end of the disk", n, at)
	}
	return nil
}

// Read reads what was written last, flushed or not.
func (d *Disk) Read(p []byte, at int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.check(len(p), at); err != nil {
		return err
	}
	copy(p, d.current[at:])
	return nil
}

// Write puts data into the cache.
func (d *Disk) Write(p []byte, at int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.check(len(p), at); err != nil {
		return err
	}
	// The request that the cut meets may be in the cache already.
	d.cache = append(d.cache, write{at, append([]byte(nil), p...)})
	copy(d.current[at:], p)
	return d.changed()
}

// Flush makes durable what is in the cache.
func (d *Disk) Flush() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.check(0, 0); err != nil {
		return err
	}
	if err := d.changed(); err != nil {
		return err
	}
	if d.lies {
		return nil
	}
	for _, w := range d.cache {
		if _, err := d.file.WriteAt(w.data, w.at); err != nil {
			return fmt.Errorf("flush: %w", err)
		}
	}
	d.cache = nil
	return nil
}

func (d *Disk) changed() error {
	if d.writes++; d.cutAt > 0 && d.writes >= d.cutAt {
		close(d.off)
		return errNoPower
	}
	return nil
}

// CutAfter cuts the power when n more requests have changed something; the last
// of them is in the cache. The first call counts, save that 0 means now.
func (d *Disk) CutAfter(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case !d.powered():
	case n <= 0:
		close(d.off)
	case d.cutAt == 0:
		d.cutAt = d.writes + n
	}
}

// Off is closed when the power is off.
func (d *Disk) Off() <-chan struct{} { return d.off }

// Loss says what becomes of the cache.
type Loss struct {
	Unit int     // bytes that are written or lost together; 0: whole requests
	Kept float64 // the part that is written
}

func (l Loss) String() string {
	unit := fmt.Sprintf("pieces of %d bytes", l.Unit)
	if l.Unit == 0 {
		unit = "requests"
	}
	return fmt.Sprintf("%.0f%% of %s kept", 100*l.Kept, unit)
}

// SomeLoss draws a loss: everything, nothing or something in between.
func SomeLoss(r *rand.Rand) Loss {
	return Loss{
		Unit: []int{0, sectorSize, sectorSize, blockSize}[r.IntN(4)],
		Kept: []float64{0, 0.05, 0.5, 0.5, 0.95, 1}[r.IntN(6)],
	}
}

// Settle makes the file what is left after the cut, and says how many requests
// were in the cache. The disk is gone then.
func (d *Disk) Settle(r *rand.Rand, loss Loss) (cached int, err error) {
	d.CutAfter(0)
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range d.cache {
		for from := 0; from < len(w.data); {
			n := min(loss.piece(w.at+int64(from)), len(w.data)-from)
			if r.Float64() < loss.Kept {
				if _, err := d.file.WriteAt(w.data[from:from+n], w.at+int64(from)); err != nil {
					return 0, fmt.Errorf("settle a disk: %w", err)
				}
			}
			from += n
		}
	}
	return len(d.cache), errors.Join(unix.Munmap(d.current), d.file.Close())
}

// piece is how many bytes from an offset on share their fate. The first block
// holds the file system's superblock, which ext4 trusts to be written whole.
func (l Loss) piece(at int64) int {
	switch {
	case at < blockSize:
		return blockSize - int(at)
	case l.Unit == 0:
		return 1 << 30
	}
	return l.Unit - int(at)%l.Unit
}
