// SPDX-License-Identifier: Apache-2.0

// Command gen writes the CustomResourceDefinitions of the Gateway API's standard channel into one compressed file. It
// takes them from its module in the version of go.mod.
package main

import (
	"bytes"
	"fmt"
	"os"

	"github.com/coracle-k8s/coracle/controllers/gateway/definitions/module"
	"github.com/klauspost/compress/zstd"
)

func main() {
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func write(path string) error {
	text, err := module.Read()
	if err != nil {
		return err
	}
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(1<<20))
	if err != nil {
		return err
	}
	if _, err := w.Write(text); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return os.WriteFile(path, out.Bytes(), 0o644)
}
