//go:build twolevels

// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"io"
	"math"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

// faultMark precedes the name of a fault that a test of upgrades has put behind the end of this program. So each faulty
// version is a program of its own, and everything else in it is real.
const faultMark = "\ncoracle-fault="

// faults are what is wrong with a version, by name. Each acts before main.
var faults = map[string]func(){
	"exits": func() { os.Exit(7) },
	"hangs": func() {
		signal.Ignore(syscall.SIGTERM)
		time.Sleep(math.MaxInt64)
	},
	// It runs, and its node never becomes Ready: containerd has no network for pods.
	"no-network": func() { go removeNetworks() },
	// Its cluster DNS does not answer: package dns cannot listen.
	"no-dns": occupyDNS,
	// It writes no rules for Services.
	"no-rules": func() { os.Args = append(os.Args, "--disable-kube-proxy") },
	// It writes none either, and those of the version before stay.
	"keeps-rules": keepRules,
	// containerd cannot reach the shim of one container, and so ends the container.
	"breaks-shim": breakShim,
	// It ends, and leaves a file that no kubelet can read.
	"changes-state": changeState,
}

func init() {
	if len(os.Args) > 1 && (os.Args[1] == "server" || os.Args[1] == "agent") {
		if act := faults[ownFault()]; act != nil {
			act()
		}
	}
}

// ownFault returns the name of this program's fault, or "".
func ownFault() string {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		panic(err)
	}
	defer f.Close()
	end := make([]byte, 64)
	if _, err := f.Seek(-int64(len(end)), io.SeekEnd); err != nil {
		panic(err)
	}
	if _, err := io.ReadFull(f, end); err != nil {
		panic(err)
	}
	_, name, _ := bytes.Cut(end, []byte(faultMark))
	return string(name)
}

// removeNetworks removes containerd's configuration of pod networks again and again.
func removeNetworks() {
	for {
		names, _ := filepath.Glob("/var/lib/coracle/agent/cni/net.d/*") // the pattern is correct
		for _, name := range names {
			_ = os.Remove(name) // it may have gone
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// dnsSocket keeps the port of the cluster DNS.
var dnsSocket net.PacketConn

// occupyDNS listens on the port of the cluster DNS, and does not reply.
func occupyDNS() {
	var err error
	if dnsSocket, err = net.ListenPacket("udp", ":10053"); err != nil { // dns.Port
		panic(err)
	}
}
