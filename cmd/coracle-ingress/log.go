// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"os"
	"sync"
)

// maxLog bounds the log, which lies on a tmpfs.
const maxLog = 1 << 20

// boundedLog empties its file before that would grow beyond maxLog. The process, which is not root any more, may not
// rename it; the agent keeps the log of the process before as an older file.
type boundedLog struct {
	mu   sync.Mutex
	file *os.File
	size int64
}

// boundLog bounds what is written to a file; what is no file, such as a terminal, is left as it is.
func boundLog(file *os.File) io.Writer {
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return file
	}
	return &boundedLog{file: file, size: info.Size()}
}

// Write appends to the file.
func (l *boundedLog) Write(text []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size+int64(len(text)) > maxLog {
		if err := l.file.Truncate(0); err != nil {
			return 0, err
		}
		l.size = 0
	}
	n, err := l.file.Write(text)
	l.size += int64(n)
	return n, err
}
