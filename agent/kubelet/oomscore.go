// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// oomScoreFile has this process' OOM score adjustment, from -1000 to 1000: the kernel kills high scores first.
const oomScoreFile = "/proc/self/oom_score_adj"

// permittedOOMScore returns want. Where this process may not write want, as in a container without CAP_SYS_RESOURCE, it
// returns the number in file. Upstream would try to write it twice with pauses of 100 ms while the kubelet starts, and
// again every five minutes.
func permittedOOMScore(file string, want int32) (int32, error) {
	err := os.WriteFile(file, []byte(strconv.Itoa(int(want))), 0o600)
	if !errors.Is(err, fs.ErrPermission) {
		return want, nil // upstream reports any other error
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return want, fmt.Errorf("reading this process' OOM score: %w", err)
	}
	have, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 32)
	if err != nil {
		return want, fmt.Errorf("reading %s: %w", file, err)
	}
	return int32(have), nil
}
