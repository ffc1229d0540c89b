// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	moby "github.com/moby/ipvs"
)

// sysctls below /proc/sys/net/ipv4; they are of the network namespace.
var sysctls = []struct{ name, value string }{
	// Connections are conntrack's too: masquerading, and rules that ask for established connections, need that.
	{"vs/conntrack", "1"},
	// What went to a real server that was taken away is forgotten, so that the next datagram goes to another one.
	{"vs/expire_nodest_conn", "1"},
	// A client with affinity to a real server that takes no new connections is given another.
	{"vs/expire_quiescent_template", "1"},
	// A client's port that is used again is a new connection, which goes to a real server that takes some. Kernels
	// before 5.9 delay it by a second, or send it to where the old one went.
	{"vs/conn_reuse_mode", "1"},
	// Each node has all Services' addresses, and on the LAN only the one that announces such an address may answer for
	// it: so a device's neighbours learn that device's addresses alone.
	{"conf/all/arp_ignore", "1"},
	{"conf/all/arp_announce", "2"},
}

const sysctlFolder = "/proc/sys/net/ipv4/"

func setSysctls() error {
	var errs []error
	for _, s := range sysctls {
		have, err := os.ReadFile(sysctlFolder + s.name)
		if err == nil && strings.TrimSpace(string(have)) == s.value {
			continue
		}
		if err := os.WriteFile(sysctlFolder+s.name, []byte(s.value), 0); err != nil {
			errs = append(errs, fmt.Errorf("setting net/ipv4/%s to %s: %w", s.name, s.value, err))
		}
	}
	return errors.Join(errs...)
}

// idleFile says for how many seconds conntrack remembers a TCP connection on which nothing is said.
const idleFile = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established"

// idleMost is what the front allows conntrack.
const idleMost = 24 * time.Hour

// setIdleTime has IPVS remember idle connections as long as conntrack does, a day at most. Its own default is a quarter
// of an hour, and the next packet after that is answered with a reset (kubernetes 80298). A longer time that the
// administrator else has set stays.
func (k *kernel) setIdleTime() error {
	text, err := os.ReadFile(idleFile)
	if errors.Is(err, os.ErrNotExist) {
		return nil // no conntrack, no example
	}
	if err != nil {
		return fmt.Errorf("asking how long conntrack remembers idle connections: %w", err)
	}
	seconds, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("reading %s: %w", idleFile, err)
	}
	want := min(time.Duration(seconds)*time.Second, idleMost)
	have, err := k.h.GetConfig()
	if err != nil {
		return fmt.Errorf("asking how long IPVS remembers idle connections: %w", err)
	}
	if have.TimeoutTCP >= want {
		return nil
	}
	// What is zero stays as it is.
	return wrap(k.h.SetConfig(&moby.Config{TimeoutTCP: want}), "having IPVS remember idle connections for %v", want)
}
