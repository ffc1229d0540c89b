// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// reporter writes lines to the host over a serial line. Those of several
// goroutines go together: each system call costs a guest dearly.
type reporter struct {
	f  *os.File
	mu sync.Mutex
	// Lines wait in text while others are being written; written is closed
	// when they are.
	text    []byte
	written chan struct{}
	busy    bool
}

func openReporter(path string) (*reporter, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("open the line to the host: %w", err)
	}
	mode, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err == nil {
		mode.Iflag, mode.Oflag, mode.Lflag = 0, 0, 0 // bytes as they are
		err = unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, mode)
	}
	if err != nil {
		return nil, fmt.Errorf("set up the line to the host: %w", err)
	}
	return &reporter{f: f, written: make(chan struct{})}, nil
}

// lines reports lines and returns when the host has them.
func (r *reporter) lines(lines ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, line := range lines {
		r.text = append(append(r.text, line...), '\n')
	}
	mine := r.written
	if r.busy { // the goroutine that is writing writes ours next
		r.mu.Unlock()
		<-mine
		r.mu.Lock()
		return
	}
	r.busy = true
	for len(r.text) > 0 {
		text, done := r.text, r.written
		r.text, r.written = nil, make(chan struct{})
		r.mu.Unlock()
		_, err := r.f.Write(text)
		if err != nil {
			panic(err) // the host is gone
		}
		close(done)
		r.mu.Lock()
	}
	r.busy = false
}

// waitForGo returns when the host says that everything was found in order.
func (r *reporter) waitForGo() error {
	var order [3]byte // go and a newline
	if _, err := io.ReadFull(r.f, order[:]); err != nil {
		return fmt.Errorf("wait for the host: %w", err)
	}
	return nil
}
