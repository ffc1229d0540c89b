// SPDX-License-Identifier: Apache-2.0

package helmchild

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
)

// absentPath is the path that Helm gets for all its folders. Nothing is read from it, and nothing can be written to it.
const absentPath = "/nonexistent/helm"

// maxData is how much writable memory the process may have, in bytes. An installation takes 60 to 70 MB. A malicious
// chart template, repository index or release record could take any amount.
const maxData = 1 << 30

// stepBack makes this process the first that the kernel kills when memory is short, and limits the memory that it may
// take. So a chart cannot end the server or a pod.
func stepBack() error {
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0); err != nil { // raising the value needs no privilege
		return fmt.Errorf("asking to be ended first when memory is short: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: maxData, Max: maxData}); err != nil {
		return fmt.Errorf("limiting the memory: %w", err)
	}
	return nil
}

// Main reads a request from standard input, does it, and writes the result to standard output. It exits at once when
// standard input closes, because the caller has exited. The release is then still marked as pending, which the next
// child process recovers. After an orderly stop it would be marked as failed.
func Main() int {
	for _, name := range []string{"HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME", "HELM_PLUGINS", "HELM_REPOSITORY_CACHE",
		"HELM_REPOSITORY_CONFIG", "HELM_REGISTRY_CONFIG"} {
		_ = os.Setenv(name, absentPath) // fails only for names with = or NUL
	}
	out := os.Stdout
	os.Stdout = os.Stderr // other code that prints must not write into the result
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	slog.SetDefault(log)

	if err := stepBack(); err != nil {
		log.Warn("this process may take more memory than it should", "error", err)
	}
	in := bufio.NewReader(os.Stdin)
	req := &helmjob.Request{}
	line, err := in.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, req)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "reading the request:", err)
		return 2
	}
	if req.Operation.OfUser() {
		_ = unix.Setpriority(unix.PRIO_PGRP, 0, 10) // the server's own work goes first; lowering needs no privilege
	}
	go func() { // lives as long as the process
		_, _ = io.Copy(io.Discard, in) // an error means the end of the input, too
		os.Exit(1)
	}()
	result := Do(context.Background(), Options{Logger: log}, req)
	if err := json.NewEncoder(out).Encode(result); err != nil {
		fmt.Fprintln(os.Stderr, "writing the result:", err)
		return 2
	}
	return 0
}
