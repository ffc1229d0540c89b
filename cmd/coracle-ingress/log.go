// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"os"
	"sync"
)

// maxLog is the maximum size of the log in bytes. The log is on a tmpfs.
const maxLog = 1 << 20

// boundedLog truncates its file before the file would grow beyond maxLog. The process has given up root and cannot
// rename the file. The agent keeps the log of the previous process as an older file.
type boundedLog struct {
	mu   sync.Mutex
	file *os.File
	size int64
}

// boundLog returns a writer that limits the size of a regular file to maxLog. It returns any other file, such as a
// terminal, unchanged.
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
