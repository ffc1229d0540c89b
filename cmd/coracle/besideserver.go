// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coracle-k8s/coracle/cmd/coracle/cli"
	"github.com/coracle-k8s/coracle/cmd/coracle/nodeoff"
	"github.com/coracle-k8s/coracle/server"
)

// bootIDFile has the kernel's id of this boot, see random(4).
const bootIDFile = "/proc/sys/kernel/random/boot_id"

// besideServer returns a function that runs a server's node until its context is done. A failure of the node leaves the
// server serving: the node is tried again by a restart in place, which stopAll begins. off is set
// when the node does not run.
func besideServer(n node, s *server.Server, off *atomic.Bool, stopAll context.CancelCauseFunc, p *cli.Process) func(context.Context) {
	boot, err := os.ReadFile(bootIDFile)
	if err != nil {
		p.Log.Warn("the id of this boot is unknown; after a reboot the node may start a minute late", "error", err)
	}
	program, _ := os.Executable() // on Linux without an error
	guard := nodeoff.New(nodeoff.Options{
		Marker: filepath.Join(p.Paths.RunDir, "node-start"), Boot: strings.TrimSpace(string(boot)), Program: program, GaveUp: errGaveUp,
		Off: func() { off.Store(true) }, MayRestart: s.Roster().MayRestart,
		Restart: func() {
			stopAll(cli.ErrRestart)
			time.AfterFunc(fatalTimeout, p.Restart) // parts of the node that has failed may not stop
		},
		Part: p.Board.Part("node"), Logger: p.Log.With("part", "node"),
	})
	setSubnets := n.podSubnets
	n.podSubnets = func(subnets []netip.Prefix) { // called when the node is ready
		guard.Ready()
		setSubnets(subnets)
	}
	return func(ctx context.Context) {
		guard.Run(ctx, func(ctx context.Context) error { return n.run(ctx, p) })
	}
}
