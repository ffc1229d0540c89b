// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// limit is a limit of the kernel's connection tracking on which Services rely. Each is changed in one direction only:
// an administrator who set a higher one, or a lower one, had a reason.
type limit struct {
	file      string // below the root
	value     int
	isMaximum bool // value is a maximum, otherwise a minimum
}

// conntrackLimits returns kube-proxy's defaults for a machine with that many cores.
func conntrackLimits(cores int) []limit {
	entries := min(max(131_072, 32_768*cores), 1_048_576)
	return []limit{
		// When the table is full, new connections of the whole node are dropped. A machine of 1 GB has space for 8,000
		// by default. Only the host's own namespace has this limit.
		{"proc/sys/net/netfilter/nf_conntrack_max", entries, false},
		{"sys/module/nf_conntrack/parameters/hashsize", entries / 4, false},
		// With the kernel's default the connections of a vanished machine would keep their entries for five days.
		{"proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established", 86_400, true},
		// By default the kernel deletes the entry of a client that has sent its last data and waits for a response
		// after a minute (kubernetes 32551).
		{"proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait", 3_600, false},
	}
}

// limitConntrack sets the limits, below root, where the kernel allows it: in a container's namespace some cannot be
// changed.
func limitConntrack(root string, limits []limit) error {
	var errs []error
	for _, l := range limits {
		path := filepath.Join(root, l.file)
		text, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			continue // this namespace, or this kernel, does not have it
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("reading a limit of connection tracking: %w", err))
			continue
		}
		have, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil || l.isMaximum && have <= l.value || !l.isMaximum && have >= l.value {
			continue
		}
		if err := os.WriteFile(path, []byte(strconv.Itoa(l.value)), 0); err != nil {
			errs = append(errs, fmt.Errorf("changing /%s from %d to %d: %w", l.file, have, l.value, err))
		}
	}
	return errors.Join(errs...)
}
