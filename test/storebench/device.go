// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/preflight"
)

// freeFlush is when a flush costs nothing: then durability is not measured.
const freeFlush = 15 * time.Microsecond

// device is the disk below a directory.
type device struct {
	dir    string
	number string // major:minor of what /proc/diskstats counts; empty: nothing does
	Name   string
	Type   string
	// FlushMs are the medians of writing 4 KB in place and fdatasync, one for each time it was asked.
	FlushMs []float64
}

func openDevice(dir string) (*device, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return nil, err
	}
	d := &device{dir: dir, Type: fmt.Sprintf("filesystem %#x", fs.Type)}
	switch fs.Type {
	case unix.TMPFS_MAGIC, unix.RAMFS_MAGIC:
		return nil, fmt.Errorf("%s is in memory: a flush costs nothing there, so nothing that matters would be measured. Give a directory on a disk", dir)
	case unix.EXT4_SUPER_MAGIC:
		d.Type = "ext4"
	case unix.XFS_SUPER_MAGIC:
		d.Type = "xfs"
	case unix.BTRFS_SUPER_MAGIC:
		d.Type = "btrfs"
	case unix.OVERLAYFS_SUPER_MAGIC:
		d.Type = "overlayfs"
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return nil, err
	}
	d.number = fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	if path, err := filepath.EvalSymlinks("/sys/dev/block/" + d.number); err == nil {
		if _, err := os.Stat(path + "/partition"); err == nil {
			path = filepath.Dir(path) // flushes are counted for the whole disk only
		}
		d.Name = filepath.Base(path)
		if b, err := os.ReadFile(path + "/dev"); err == nil {
			d.number = strings.TrimSpace(string(b))
		}
	}
	if _, err := d.counters(); err != nil {
		d.number = ""
	}
	p50, err := d.probe()
	if err != nil {
		return nil, err
	}
	if p50 < freeFlush {
		return nil, fmt.Errorf("a flush takes %s in %s: it does not reach a disk. Give a directory on one", p50, dir)
	}
	return d, nil
}

func (d *device) String() string {
	return fmt.Sprintf("disk %s (%s), fdatasync p50 %.3f ms", d.Name, d.Type, d.FlushMs[len(d.FlushMs)-1])
}

// probe measures what one flush costs.
func (d *device) probe() (time.Duration, error) {
	p50, err := preflight.Median(d.dir, 256)
	if err != nil {
		return 0, err
	}
	d.FlushMs = append(d.FlushMs, ms(p50))
	return p50, nil
}

// traffic is what went to the disk, by everybody.
type traffic struct{ bytes, flushes int64 }

func (t traffic) since(u traffic) traffic { return traffic{t.bytes - u.bytes, t.flushes - u.flushes} }

func (d *device) counters() (traffic, error) {
	b, err := os.ReadFile("/proc/diskstats")
	if err != nil {
		return traffic{}, err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) >= 19 && f[0]+":"+f[1] == d.number {
			sectors, _ := strconv.ParseInt(f[9], 10, 64)
			flushes, _ := strconv.ParseInt(f[18], 10, 64)
			return traffic{sectors * 512, flushes}, nil
		}
	}
	return traffic{}, fmt.Errorf("the kernel does not count the writes to disk %s", d.number)
}

// settled returns the counters when everything written is on the disk.
func (d *device) settled() (traffic, error) {
	f, err := os.Open(d.dir)
	if err != nil {
		return traffic{}, err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return traffic{}, err
	}
	return d.counters()
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
