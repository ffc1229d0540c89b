// SPDX-License-Identifier: Apache-2.0

package helmjob

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

// nowhere is where Helm's folders are said to be: nothing is read from there, and nothing can be written.
const nowhere = "/nonexistent/helm"

// maxData is how much memory the process may have to write to, in bytes. An installation takes 60 to 70 MB; a chart's
// templates, a repository's index and a release's record can be made to take any amount.
const maxData = 1 << 30

// stepBack has this process be the first that goes when the machine's memory is short, and bounds what it takes, so
// that a chart is not what ends the server or a pod.
func stepBack() error {
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0); err != nil { // to raise it takes no right
		return fmt.Errorf("asking to be ended first when memory is short: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: maxData, Max: maxData}); err != nil {
		return fmt.Errorf("limiting the memory: %w", err)
	}
	return nil
}

// Main reads a request from standard input, does it, and writes the result. It ends at once when standard input closes:
// the caller has exited, and a release that is marked as pending is recovered by the next child, where one that was
// stopped in an orderly way would be marked as failed.
func Main() int {
	for _, name := range []string{"HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME", "HELM_PLUGINS", "HELM_REPOSITORY_CACHE",
		"HELM_REPOSITORY_CONFIG", "HELM_REGISTRY_CONFIG"} {
		_ = os.Setenv(name, nowhere) // fails for names with = or NUL alone
	}
	out := os.Stdout
	os.Stdout = os.Stderr // whatever else prints does not print into the result
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
	go func() { // lives as long as the process
		_, _ = io.Copy(io.Discard, in) // an error is an end too
		os.Exit(1)
	}()
	result := Do(context.Background(), Options{Logger: log}, req)
	if err := json.NewEncoder(out).Encode(result); err != nil {
		fmt.Fprintln(os.Stderr, "writing the result:", err)
		return 2
	}
	return 0
}
