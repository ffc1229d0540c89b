// SPDX-License-Identifier: Apache-2.0

package drain

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// stream is a Pipe with both its neighbours: a container that writes and a reader that comes and goes.
type stream struct {
	t    *testing.T
	pipe *Pipe
	opts Options
	w    *os.File
	r    *os.File
}

func newStream(t *testing.T, limit int64, stall time.Duration) *stream {
	t.Helper()
	dir := t.TempDir()
	s := &stream{t: t, opts: Options{
		In: filepath.Join(dir, "in"), Out: filepath.Join(dir, "out"), Dir: filepath.Join(dir, "work"), Name: "stdout",
		Limit: limit, Stall: stall,
	}}
	testenv.NoError(t, unix.Mkfifo(s.opts.Out, 0o600))
	s.connect()
	p, err := Start(s.opts)
	testenv.NoError(t, err)
	s.pipe = p
	t.Cleanup(p.Close)
	s.w, err = os.OpenFile(s.opts.In, os.O_WRONLY, 0)
	testenv.NoError(t, err)
	t.Cleanup(func() { s.w.Close() })
	p.Seal()
	return s
}

func (s *stream) connect() {
	s.t.Helper()
	r := testenv.Must(os.OpenFile(s.opts.Out, os.O_RDONLY|unix.O_NONBLOCK, 0))(s.t)
	s.t.Cleanup(func() { r.Close() })
	s.r = r
}

func (s *stream) leave() { s.r.Close() }

func (s *stream) write(b []byte) {
	s.t.Helper()
	_ = s.w.SetWriteDeadline(time.Now().Add(2 * time.Minute))
	testenv.NoError(s.t, testenv.Err(s.w.Write(b)), "the container's write")
}

// read reads exactly n bytes.
func (s *stream) read(n int) []byte {
	s.t.Helper()
	buf := make([]byte, n)
	_ = s.r.SetReadDeadline(time.Now().Add(2 * time.Minute))
	if got, err := io.ReadFull(s.r, buf); err != nil {
		s.t.Fatalf("read %d of %d bytes: %v", got, n, err)
	}
	return buf
}

// readAll reads until the stream ends.
func (s *stream) readAll() []byte {
	s.t.Helper()
	_ = s.r.SetReadDeadline(time.Now().Add(2 * time.Minute))
	data, err := io.ReadAll(s.r)
	testenv.NoError(s.t, err, "after %d bytes", len(data))
	return data
}

func (s *stream) waitDone() {
	s.t.Helper()
	select {
	case <-s.pipe.Done():
	case <-time.After(2 * time.Minute):
		s.t.Fatal("the pipe did not end")
	}
}

func lines(from, to int) []byte {
	var b bytes.Buffer
	for i := from; i < to; i++ {
		fmt.Fprintf(&b, "line %09d\n", i)
	}
	return b.Bytes()
}

func TestOutputPassesWithoutSpooling(t *testing.T) {
	s := newStream(t, 1<<20, time.Minute)
	s.write([]byte("hello"))
	testenv.Equal(t, string(s.read(5)), "hello", "read")
	s.w.Close()
	testenv.Equal(t, len(s.readAll()), 0, "unexpected output")
	s.waitDone()
	if _, err := os.Stat(s.opts.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Error("files were made although a reader was there all along")
	}
}

// While Out is full the kernel reports the same for an input without bytes and for one that has ended.
func TestContainerEndsWhileOutIsFull(t *testing.T) {
	s := newStream(t, 1<<20, time.Minute)
	data := bytes.Repeat([]byte("x"), 64<<10) // as much as a FIFO holds
	s.write(data)
	waitFor(t, "all output in Out", func() bool { return unreadBytes(s.pipe.out) == len(data) })
	s.w.Close()
	testenv.True(t, bytes.Equal(s.read(len(data)), data), "the output changed on its way")
	s.waitDone()
}

func TestSlowReaderSlowsTheContainerDown(t *testing.T) {
	s := newStream(t, 1<<20, time.Minute)
	data := lines(0, 50_000) // 700 KB: more than the FIFOs hold
	wrote := make(chan error, 1)
	go func() { _, err := s.w.Write(data); wrote <- err; s.w.Close() }()
	got := s.readAll()
	testenv.NoError(t, <-wrote)
	testenv.True(t, bytes.Equal(got, data), "the output changed on its way")
	testenv.False(t, s.pipe.spooling(), "a reader that keeps reading made the pipe use files")
}

func TestOutputIsSpooledWithoutReader(t *testing.T) {
	s := newStream(t, 64<<20, time.Minute)
	s.write(lines(0, 10))
	first := s.read(10 * 15)
	s.leave()

	s.write(lines(10, 200_000)) // 3 MB; without the pipe this blocks at 64 KiB
	testenv.True(t, s.pipe.spooling(), "the reader is away, yet nothing is kept")
	s.connect()
	rest := s.read((200_000 - 10) * 15)
	testenv.True(t, bytes.Equal(append(first, rest...), lines(0, 200_000)), "the output is not what was written, in order")
	waitFor(t, "direct passing again", func() bool { return !s.pipe.spooling() })
	s.write([]byte("after\n"))
	s.w.Close()
	testenv.Equal(t, string(s.readAll()), "after\n", "after the replay:")
	s.waitDone()
	if left, _ := filepath.Glob(filepath.Join(s.opts.Dir, "*")); len(left) != 0 {
		t.Errorf("files left behind: %v", left)
	}
}

func TestContainerEndsWhileReaderAway(t *testing.T) {
	for _, size := range []int{1, 200_000} {
		s := newStream(t, 64<<20, time.Minute)
		s.leave()
		s.write(lines(0, size))
		s.w.Close()
		s.connect()
		if got := s.readAll(); !bytes.Equal(got, lines(0, size)) {
			t.Errorf("%d lines: read %d bytes of %d", size, len(got), size*15)
		}
		s.waitDone()
	}
}

func TestOldestOutputIsDroppedWithAMarker(t *testing.T) {
	s := newStream(t, 1<<20, time.Minute)
	s.leave()
	const n = 200_000 // 3 MB into 1 MB
	s.write(lines(0, n))
	s.w.Close()
	s.connect()
	out := s.readAll()

	var got, next, missing, markers int
	for sc := bufio.NewScanner(bytes.NewReader(out)); sc.Scan(); {
		var i, gap int
		if _, err := fmt.Sscanf(sc.Text(), "line %d", &i); err == nil {
			testenv.Require(t, markers != 0 || i == next, "line %d after %d without a marker", i, next-1)
			got, next = got+1, i+1
			continue
		}
		if _, err := fmt.Sscanf(sc.Text(), "[coracle: this output was not read for a while and its buffer was full: %d bytes", &gap); err == nil {
			markers, missing = markers+1, gap
			continue
		}
		testenv.Require(t, sc.Text() == "" || strings.HasPrefix("line 000000000", sc.Text()), "unexpected line %q", sc.Text())
	}
	testenv.Require(t, markers == 1 && next == n, "%d markers, last line %d of %d", markers, next-1, n-1)
	marker := len("[coracle: this output was not read for a while and its buffer was full:  bytes are missing here]\n\n") + len(fmt.Sprint(missing))
	if total := missing + len(out) - marker; total != n*15 {
		t.Errorf("%d missing and %d delivered are not the %d bytes written", missing, len(out)-marker, n*15)
	}
	testenv.False(t, len(out) < 1<<19 || len(out) > 1<<20+1<<18, "%d bytes were kept with a limit of 1 MiB", len(out))
}

func TestStuckReaderDoesNotStopTheContainer(t *testing.T) {
	s := newStream(t, 1<<20, 50*time.Millisecond)
	var written atomic.Int64
	go func() {
		for i := 0; ; i += 100 {
			if _, err := s.w.Write(lines(i, i+100)); err != nil {
				return
			}
			written.Add(1500)
		}
	}()
	waitFor(t, "four megabytes written past a reader that does not read", func() bool { return written.Load() > 4<<20 })
}

func TestFullDiskCountsAsMissing(t *testing.T) {
	s := newStream(t, 1<<20, time.Minute)
	testenv.NoError(t, os.WriteFile(s.opts.Dir, nil, 0o600)) // a file where the folder should be
	s.leave()
	s.write(lines(0, 20_000))
	waitFor(t, "the output to be taken", func() bool { return unreadIn(s) == 0 })
	testenv.NoError(t, os.Remove(s.opts.Dir))
	s.write([]byte("and on\n"))
	s.w.Close()
	s.connect()
	out := string(s.readAll())
	testenv.Contains(t, out, "bytes are missing here]\nand on\n", "")
}

func TestCloseEndsWithoutReader(t *testing.T) {
	for name, prepare := range map[string]func(*stream){
		"idle":          func(*stream) {},
		"reader away":   func(s *stream) { s.leave(); s.write(lines(0, 100_000)) },
		"reader stuck":  func(s *stream) { s.write(lines(0, 4_000)) },
		"writer ended":  func(s *stream) { s.leave(); s.write(lines(0, 10)); s.w.Close() },
		"before writer": func(s *stream) { s.w.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			s := newStream(t, 1<<20, 20*time.Millisecond)
			prepare(s)
			closed := make(chan struct{})
			go func() { s.pipe.Close(); close(closed) }()
			select {
			case <-closed:
			case <-time.After(2 * time.Minute):
				t.Fatal("Close does not return")
			}
			if left, _ := filepath.Glob(filepath.Join(s.opts.Dir, "*")); len(left) != 0 {
				t.Errorf("files left behind: %v", left)
			}
		})
	}
}

func unreadIn(s *stream) int { return unreadBytes(s.w) }

func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	testenv.Until(t, 2*time.Minute, what, cond)
}
