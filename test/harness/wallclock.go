// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// skewCode replaces the body of the vDSO's clock_gettime. It makes the system call, and adds the offset behind it to
// the seconds of CLOCK_REALTIME:
//
//	mov eax, 228; syscall; test edi, edi; jne done; mov rcx, [rip+6]; add [rsi], rcx; done: ret; nop; nop
var skewCode = []byte{0xb8, 0xe4, 0, 0, 0, 0x0f, 0x05, 0x85, 0xff, 0x75, 0x0a, 0x48, 0x8b, 0x0d, 6, 0, 0, 0, 0x48, 0x01, 0x0e, 0xc3, 0x90, 0x90}

// SkewClock makes the wall clock of the process be off by a duration from now on; 0 sets it right. Its monotonic clock
// and all other processes stay as they are: the write gives the process a private copy of the vDSO. A process that is
// started again has the right clock. It exists on amd64 only, and skips the test elsewhere.
func (s *Server) SkewClock(by time.Duration) {
	s.T.Helper()
	if runtime.GOARCH != "amd64" {
		s.T.Skip("the code that replaces the vDSO's is that of amd64")
	}
	Eventually(s.T, Soon, fmt.Sprintf("the clock of machine %d is off by %v", s.Number, by), func() error {
		// The process is nsenter at first, and then what it executes.
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", s.pid)); err != nil || filepath.Base(exe) != filepath.Base(s.Coracle()) {
			return errors.Join(fmt.Errorf("the process runs %q", exe), err, s.Alive())
		}
		return s.skewClock(by)
	})
}

func (s *Server) skewClock(by time.Duration) error {
	memory, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", s.pid), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer memory.Close()
	vdso, err := vdsoOf(s.pid, memory)
	if err != nil {
		return err
	}
	at, err := vdso.clockGettime()
	if err != nil {
		return err
	}
	offset := binary.LittleEndian.AppendUint64(nil, uint64(int64(by/time.Second)))
	if bytes.HasPrefix(vdso.image[at:], skewCode) {
		_, err = memory.WriteAt(offset, vdso.start+at+int64(len(skewCode)))
		return err
	}
	s.Pause() // no thread may run in the code meanwhile
	defer s.Resume()
	_, err = memory.WriteAt(append(bytes.Clone(skewCode), offset...), vdso.start+at)
	return err
}

// vdso is a process' mapping of the kernel's code for clocks.
type vdso struct {
	start int64
	image []byte
}

func vdsoOf(pid int, memory io.ReaderAt) (v vdso, err error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return v, err
	}
	for line := range strings.Lines(string(maps)) {
		var end int64
		if strings.HasSuffix(strings.TrimSpace(line), "[vdso]") {
			if _, err := fmt.Sscanf(line, "%x-%x", &v.start, &end); err != nil {
				return v, err
			}
			v.image = make([]byte, end-v.start)
			_, err := memory.ReadAt(v.image, v.start)
			return v, err
		}
	}
	return v, errors.New("the process has no vDSO")
}

// clockGettime returns the offset of the body of clock_gettime.
func (v vdso) clockGettime() (int64, error) {
	file, err := elf.NewFile(bytes.NewReader(v.image))
	if err != nil {
		return 0, err
	}
	symbols, err := file.DynamicSymbols()
	if err != nil {
		return 0, err
	}
	for _, symbol := range symbols {
		if symbol.Name != "__vdso_clock_gettime" {
			continue
		}
		at := int64(symbol.Value)
		// The function may be only a near jump, relative to the next instruction, perhaps after endbr64.
		const jump = 0xe9
		if bytes.HasPrefix(v.image[at:], []byte{0xf3, 0x0f, 0x1e, 0xfa, jump}) {
			at += 4
		}
		if v.image[at] == jump {
			at += 5 + int64(int32(binary.LittleEndian.Uint32(v.image[at+1:])))
		}
		return at, nil
	}
	return 0, errors.New("the vDSO has no clock_gettime")
}
