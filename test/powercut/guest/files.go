// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// files tells the host when the store begins something that is worth a cut.
type files struct {
	fd  int
	out *reporter
}

func watchFiles(out *reporter) (*files, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("watch files: %w", err)
	}
	f := &files{fd: fd, out: out}
	go f.run() // until the machine is gone
	return f, nil
}

func (f *files) add(dir string) error {
	if _, err := unix.InotifyAddWatch(f.fd, dir, unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_MODIFY|unix.IN_DELETE); err != nil {
		return fmt.Errorf("watch %s: %w", dir, err)
	}
	return nil
}

func (f *files) run() {
	buffer := make([]byte, 16<<10)
	for {
		n, err := unix.Read(f.fd, buffer)
		if err != nil {
			return
		}
		var lines []string
		for at := 0; at+unix.SizeofInotifyEvent <= n; {
			event := (*unix.InotifyEvent)(unsafe.Pointer(&buffer[at]))
			at += unix.SizeofInotifyEvent
			name := strings.TrimRight(string(buffer[at:at+int(event.Len)]), "\x00")
			at += int(event.Len)
			if line := moment(name, event.Mask); line != "" {
				lines = append(lines, "@ "+line)
			}
		}
		f.out.lines(lines...)
	}
}

// moment names what an event on a file means, or is empty.
func moment(name string, mask uint32) string {
	created, deleted := mask&unix.IN_CREATE != 0, mask&unix.IN_DELETE != 0
	switch {
	case strings.HasSuffix(name, ".segment.tmp") && created:
		return "segment"
	case strings.HasSuffix(name, ".segment") && deleted:
		return "trimmed"
	case strings.HasSuffix(name, ".tmp") && strings.HasPrefix(name, "0") && created:
		return "snapshot"
	case strings.HasSuffix(name, ".snapshot") && mask&unix.IN_MOVED_TO != 0:
		return "snapshotted"
	case name == "vars.db" && mask&unix.IN_MODIFY != 0:
		return "vars"
	}
	return ""
}
