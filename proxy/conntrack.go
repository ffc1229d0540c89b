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

// limit is a number of the kernel's connection tracking that Services rely on. Each is moved in one direction only: who
// has set more, or less, had a reason.
type limit struct {
	file  string // below the root
	value int
	most  bool // value is the most that it may be, otherwise the least
}

// conntrackLimits are kube-proxy's defaults, for a machine with so many cores.
func conntrackLimits(cores int) []limit {
	entries := min(max(131_072, 32_768*cores), 1_048_576)
	return []limit{
		// When the table is full, new connections of the whole node are dropped. A machine of 1 GB has room for 8,000.
		// Of the host's own namespace alone.
		{"proc/sys/net/netfilter/nf_conntrack_max", entries, false},
		{"sys/module/nf_conntrack/parameters/hashsize", entries / 4, false},
		// Five days after a machine vanished its connections would still have their places.
		{"proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established", 86_400, true},
		// A client that has said its last word and waits for an answer would be forgotten after a minute (kubernetes
		// 32551).
		{"proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait", 3_600, false},
	}
}

// limitConntrack makes the kernel keep the limits, below root, as far as it lets us: a container's namespace may not
// change all of them.
func limitConntrack(root string, limits []limit) error {
	var errs []error
	for _, l := range limits {
		path := filepath.Join(root, l.file)
		text, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			continue // not of this namespace, or of this kernel
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("reading a limit of connection tracking: %w", err))
			continue
		}
		have, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil || l.most && have <= l.value || !l.most && have >= l.value {
			continue
		}
		if err := os.WriteFile(path, []byte(strconv.Itoa(l.value)), 0); err != nil {
			errs = append(errs, fmt.Errorf("changing /%s from %d to %d: %w", l.file, have, l.value, err))
		}
	}
	return errors.Join(errs...)
}
