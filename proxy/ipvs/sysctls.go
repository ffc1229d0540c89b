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

// sysctls are below /proc/sys/net/ipv4. They belong to the network namespace.
var sysctls = []struct{ name, value string }{
	// conntrack tracks IPVS' connections, too: masquerading, and rules for established connections, need that.
	{"vs/conntrack", "1"},
	// Connections to a removed real server are deleted, so that the next datagram goes to another one.
	{"vs/expire_nodest_conn", "1"},
	// A client with affinity to a real server that takes no new connections gets another one.
	{"vs/expire_quiescent_template", "1"},
	// When a client uses a port again, that is a new connection to a real server that takes new ones. Kernels before
	// 5.9 delay it by a second, or send it to the old connection's real server.
	{"vs/conn_reuse_mode", "1"},
	// Each node has all Services' addresses, and on the LAN only the node that announces such an address may reply for
	// it. So ARP on a device names that device's addresses alone.
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

// idleFile has for how many seconds conntrack keeps an idle TCP connection.
const idleFile = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established"

// idleMost is the limit that the front sets for conntrack.
const idleMost = 24 * time.Hour

// setIdleTime makes IPVS keep idle connections as long as conntrack does, a day at most. IPVS' default is a quarter of
// an hour, and the next packet after that is rejected with a reset (kubernetes 80298). A longer time that the
// administrator has set is kept.
func (k *kernel) setIdleTime() error {
	text, err := os.ReadFile(idleFile)
	if errors.Is(err, os.ErrNotExist) {
		return nil // without conntrack there is no value to use
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
	// Zero values in the request leave settings unchanged.
	return wrap(k.h.SetConfig(&moby.Config{TimeoutTCP: want}), "having IPVS remember idle connections for %v", want)
}
