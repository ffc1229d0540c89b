// SPDX-License-Identifier: Apache-2.0

// Command gendocs generates the documentation of the table of settings. Its argument is the file to write.
package main

import (
	"bytes"
	"fmt"
	"os"

	"github.com/coracle-k8s/coracle/internal/config"
)

func main() {
	if err := generate(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "gendocs:", err)
		os.Exit(1)
	}
}

func generate(args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("usage: gendocs FILE")
	}
	var b bytes.Buffer
	if err := config.WriteMarkdown(&b); err != nil {
		return err
	}
	return os.WriteFile(args[0], b.Bytes(), 0o644)
}
