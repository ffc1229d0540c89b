// SPDX-License-Identifier: Apache-2.0

package filewatch

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Instances and Watches are how many inotify instances and watches a user's programs should have in total. A server
// with a node uses 24 instances, and each kubectl logs -f one more. Pods' programs that run as root use any number.
const Instances, Watches = 1024, 65536

// RaiseLimits raises the kernel's limits for all programs of the machine, if the limits are lower. Upstream's
// components use inotify instances, too. Without one for cAdvisor, the kubelet ends the process. Without others, no CSI
// driver is found, and a changed certificate is read up to a minute later. A limit that cannot be raised is logged and
// is no error.
func RaiseLimits(log *slog.Logger) {
	if err := raiseLimits("/proc/sys/fs/inotify"); err != nil {
		log.Warn("the machine lets its programs watch few files; pods' programs may use that up, and kubectl logs -f fails then", "error",
			err)
	}
}

func raiseLimits(dir string) error {
	var errs []error
	for name, want := range map[string]int{"max_user_instances": Instances, "max_user_watches": Watches} {
		path := filepath.Join(dir, name)
		text, err := os.ReadFile(path)
		if err != nil {
			errs = append(errs, fmt.Errorf("reading the kernel's limit: %w", err))
			continue
		}
		have, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err == nil && have >= want {
			continue
		}
		if err := os.WriteFile(path, []byte(strconv.Itoa(want)), 0o644); err != nil {
			errs = append(errs, fmt.Errorf("raising fs.inotify.%s from %d to %d: %w", name, have, want, err))
		}
	}
	return errors.Join(errs...)
}
