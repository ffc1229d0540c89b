// SPDX-License-Identifier: Apache-2.0

// Package bugreport gathers files for a bug report and packs them into one archive.
//
// It bounds time and size: a section that a disk, a program or a server stalls is left behind, and the archive says so.
// It masks secrets in every text. It owns the archive, and nothing of the machine: what it starts only reads.
//
// Its goroutines: one that waits for each program that it runs, and one for each of its outputs.
package bugreport

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// MaxSize is the maximum length of all files before they are packed, in bytes. So no archive is larger than 20 MB,
	// also where its content does not compress.
	MaxSize = 19_000_000
	// MaxFile is the maximum length of one file, in bytes.
	MaxFile = 6_000_000
	// commandTime is the maximum duration of one command.
	commandTime = 8 * time.Second
)

// Section is a group of files.
type Section struct {
	// Name is the folder of the files.
	Name string
	// About says what is in them, in one line.
	About string
	// Collect adds the files. It may be stalled for good: it is left behind then.
	Collect func(ctx context.Context, f *Files)
}

// Files takes the files of one section.
type Files struct {
	section string
	r       *report
}

// report holds the files that all sections have added.
type report struct {
	mu     sync.Mutex
	mask   func(string) string
	files  map[string][]byte
	failed []string
	size   int
	closed bool
}

// Text adds a text, with masks in the place of secrets. Of one that is too long it adds the end.
func (f *Files) Text(name, text string) {
	if len(text) > MaxFile {
		text = text[len(text)-MaxFile:]
	}
	f.add(name, []byte(f.r.mask(strings.ToValidUTF8(text, "?"))))
}

// Binary adds a file as it is.
func (f *Files) Binary(name string, content []byte) { f.add(name, content) }

func (f *Files) add(name string, content []byte) {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	path := f.section + "/" + name
	switch {
	case f.r.closed:
	case len(content) > MaxFile:
		f.r.failed = append(f.r.failed, fmt.Sprintf("%s: it is too large, %d bytes", path, len(content)))
	case f.r.size+len(content) > MaxSize:
		f.r.failed = append(f.r.failed, fmt.Sprintf("%s: the archive would be too large", path))
	default:
		f.r.files[path] = content
		f.r.size += len(content)
	}
}

// Failed records that a file is missing, and why. It does nothing without an error.
func (f *Files) Failed(name string, err error) {
	if err == nil {
		return
	}
	text := f.section + "/" + name + ": " + strings.ReplaceAll(f.r.mask(err.Error()), "\n", " ")
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	if !f.r.closed {
		f.r.failed = append(f.r.failed, text)
	}
}

// Command adds what a program prints, with its errors. A program that is not installed, or does not end in time, is
// recorded as missing.
func (f *Files) Command(ctx context.Context, name string, c *exec.Cmd) {
	out, err := Output(ctx, c)
	if len(out) > 0 {
		f.Text(name, out)
	}
	f.Failed(name, err)
}

// Output returns what a program prints, at most MaxFile bytes of it. It returns before the program has ended when that
// takes too long: a process that waits for a disk cannot be killed.
func Output(ctx context.Context, c *exec.Cmd) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	var out limitedBuffer
	c.Stdout, c.Stderr, c.WaitDelay = &out, &out, time.Second
	if err := c.Start(); err != nil {
		return "", err
	}
	done := make(chan error, 1) // one: the goroutine never waits for a reader
	go func() { done <- c.Wait() }()
	select {
	case err := <-done:
		return out.String(), err
	case <-ctx.Done():
		_ = c.Process.Kill() // it has ended, or does so when it can
		return out.String(), fmt.Errorf("%s has not ended in time", c.Args[0])
	}
}

// limitedBuffer keeps the first MaxFile bytes that are written to it.
type limitedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *limitedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b.Write(p[:min(len(p), MaxFile-l.b.Len())])
	return len(p), nil
}

func (l *limitedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Archive holds the files that Collect has gathered.
type Archive struct {
	files  map[string][]byte
	readme string
	// Failed says what is missing, and why.
	Failed []string
}

// Collect gathers all sections at the same time, and returns when they have ended, or ctx has. The function mask masks
// the secrets in texts. The introduction is the beginning of the archive's README.
func Collect(ctx context.Context, mask func(string) string, introduction string, sections []Section) *Archive {
	r := &report{mask: mask, files: map[string][]byte{}}
	ended := make(chan string, len(sections)) // all of them: a section that is left behind never waits for a reader
	running := map[string]bool{}
	for _, s := range sections {
		running[s.Name] = true
		go func() {
			f := &Files{s.Name, r}
			defer func() {
				if p := recover(); p != nil { // the other sections are worth more than this one
					f.Failed("", fmt.Errorf("a fault of coracle debug collect: %v", p))
				}
				ended <- s.Name
			}()
			s.Collect(ctx, f)
		}()
	}
	for len(running) > 0 && ctx.Err() == nil {
		select {
		case name := <-ended:
			delete(running, name)
		case <-ctx.Done():
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for name := range running {
		r.failed = append(r.failed, name+"/: it was not finished in time; what was there by then is in the archive")
	}
	slices.Sort(r.failed)
	a := &Archive{files: r.files, Failed: r.failed}
	a.readme = a.describe(introduction, sections)
	return a
}

func (a *Archive) describe(introduction string, sections []Section) string {
	var b strings.Builder
	b.WriteString(introduction)
	for _, s := range sections {
		fmt.Fprintf(&b, "\n%s/\n  %s\n", s.Name, s.About)
	}
	if len(a.Failed) > 0 {
		b.WriteString("\nWhat is missing:\n")
	}
	for _, why := range a.Failed {
		b.WriteString("  " + why + "\n")
	}
	return b.String()
}

// Write writes the archive, a tar file packed by gzip, in which all files are in the folder. Every one may be read by
// its owner only.
func (a *Archive) Write(w io.Writer, folder string, now time.Time) error {
	z := gzip.NewWriter(w)
	t := tar.NewWriter(z)
	for _, name := range append([]string{"README.txt"}, slices.Sorted(maps.Keys(a.files))...) {
		content := a.files[name]
		if name == "README.txt" {
			content = []byte(a.readme)
		}
		head := &tar.Header{Name: folder + "/" + name, Mode: 0o600, Size: int64(len(content)), ModTime: now, Format: tar.FormatPAX}
		if err := t.WriteHeader(head); err != nil {
			return fmt.Errorf("packing %s: %w", name, err)
		}
		if _, err := t.Write(content); err != nil {
			return fmt.Errorf("packing %s: %w", name, err)
		}
	}
	return errors.Join(t.Close(), z.Close())
}
