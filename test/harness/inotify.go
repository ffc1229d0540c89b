// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// enoughInotify raises the kernel's limit of inotify instances, which is one for all of root's processes, on all
// machines and beside them: a server with a node has 24, the kernel gives 128, and scenarios side by side have up to
// thirty machines. Without one the kubelet ends. It is the one setting of the host that scenarios change; it stays,
// since others may have come to need it.
func enoughInotify() error {
	const file, enough = "/proc/sys/fs/inotify/max_user_instances", 1024
	if os.Geteuid() != 0 {
		return nil // there will be no machine either
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("how many inotify instances there may be: %w", err)
	}
	have, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err == nil && have < enough {
		err = os.WriteFile(file, []byte(strconv.Itoa(enough)), 0o644)
	}
	if err != nil {
		return fmt.Errorf("%d inotify instances may be too few for all machines, and it cannot be changed: %w", have, err)
	}
	return nil
}
