// SPDX-License-Identifier: Apache-2.0

// chat writes numbered lines to its standard output. It keeps the number of the last line it got rid of in the file
// /written, where a test reads it through /proc/PID/root: a program that is stuck in write(2) does not move it.
//
//	chat forever BYTES_PER_SECOND
//	chat burst LINES EXIT_CODE    waits for the file /go, writes and ends
package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

const lineLength = 100

func main() {
	arg := func(i int) int {
		n, err := strconv.Atoi(os.Args[i])
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(125)
		}
		return n
	}
	counter, err := os.Create("/written")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(125)
	}
	n := 0
	write := func(lines int) {
		var b strings.Builder
		for range lines {
			text := fmt.Sprintf("line %d ", n)
			b.WriteString(text + strings.Repeat(".", lineLength-1-len(text)) + "\n")
			n++
		}
		if _, err := os.Stdout.WriteString(b.String()); err != nil {
			os.Exit(124)
		}
		counter.WriteAt(fmt.Appendf(nil, "%d\n", n), 0)
	}
	switch os.Args[1] {
	case "forever":
		for range time.Tick(10 * time.Millisecond) {
			write(arg(2) / 100 / lineLength)
		}
	case "burst":
		for {
			if _, err := os.Stat("/go"); err == nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
		for n < arg(2) {
			write(100)
		}
		os.Exit(arg(3))
	}
}
