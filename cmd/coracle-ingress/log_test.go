// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestLogIsBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	file := testenv.Must(os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600))(t)
	defer file.Close()
	log := boundLog(file)
	line := append(bytes.Repeat([]byte("x"), 999), '\n')
	for range 3 * maxLog / len(line) {
		testenv.Must(log.Write(line))(t)
		if info, err := file.Stat(); err != nil || info.Size() > maxLog || info.Size() == 0 {
			t.Fatalf("the log is %v, %v", info, err)
		}
	}
	last := []byte("the last line\n")
	testenv.Must(log.Write(last))(t)
	if text, err := os.ReadFile(path); err != nil || !bytes.HasSuffix(text, last) {
		t.Errorf("the log does not end with the last line: %v", err)
	}
}
