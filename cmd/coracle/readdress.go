// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/cmd/coracle/addrwatch"
	"github.com/coracle-k8s/coracle/cmd/coracle/cli"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/status"
)

// stopTimeout is how long an orderly stop may take when the address is gone. Connections to other machines are then
// stuck, and so are the parts that want to send something. Acknowledged writes are on the disk, and pods belong to
// their shims.
const stopTimeout = 2 * time.Second

// withAddresses runs f until the machine has other addresses than at the start, and then returns cli.ErrRestart: the
// kubelet, the certificates and the store's Raft address are set up for one address. Addresses that the operator gave
// are not replaced.
func withAddresses(ctx context.Context, n config.Node, networks []netip.Prefix, p *cli.Process,
	f func(context.Context, context.CancelCauseFunc) error) error {
	ctx, stop := context.WithCancelCause(ctx)
	var following sync.WaitGroup
	following.Go(func() { followAddresses(ctx, n, networks, p, stop) })
	err := f(ctx, stop)
	restartProcess := errors.Is(context.Cause(ctx), cli.ErrRestart)
	stop(nil)
	following.Wait()
	if restartProcess {
		if err != nil && !errors.Is(err, cli.ErrRestart) && !errors.Is(err, context.Canceled) {
			p.Log.Warn("some parts ended with an error before coracle restarts", "error", err)
		}
		return cli.ErrRestart
	}
	return err
}

// followAddresses calls stop with cli.ErrRestart when the machine has other addresses. It reports when the machine has
// lost an address and has no other one.
func followAddresses(ctx context.Context, n config.Node, networks []netip.Prefix, p *cli.Process, stop context.CancelCauseFunc) {
	failed := func(err error) {
		p.Log.Warn("changes of this machine's address cannot be detected now; retrying", "error", err)
	}
	var host config.ReplacingHost
	var err error
	if host.Links, err = host.LinksWith(n.IPs); err != nil {
		failed(err)
	}
	next := addrwatch.Changed(ctx, addrwatch.Options{
		Have: n.IPs, Owns: host.Owns,
		Find: func() ([]netip.Addr, error) {
			if n.IPsGiven {
				return nil, nil
			}
			return config.HostIPs(host, networks)
		},
		Gone:   func(gone []netip.Addr) { reportLost(n, p, gone) },
		Failed: failed,
	})
	if ctx.Err() != nil {
		return
	}
	p.Log.Warn("this machine's address has changed; coracle restarts with the new one", "before", n.IPs, "now", next)
	stop(cli.ErrRestart)
	time.AfterFunc(stopTimeout, p.Restart)
}

// reportLost reports in the log and on the board that addresses are gone and there are no others. With gone nil it
// reports that they are back.
func reportLost(n config.Node, p *cli.Process, gone []netip.Addr) {
	line := p.Board.Part("address")
	if gone == nil {
		line.Set(status.Running, "")
		p.Log.Info("this machine has its address again", "address", n.IPs)
		return
	}
	why := strings.Join(clusterconfig.Strings(gone), " and ") + " is no longer an address of this machine. "
	if n.IPsGiven {
		why += "Correct --node-ip, or leave it out so that coracle finds the address by itself, and restart coracle"
	} else {
		why += "The machine has no other address yet, so other machines cannot reach it. coracle uses another address when one appears on the same link, " +
			"or on one with a default route"
	}
	line.Set(status.Degraded, why)
	p.Log.Warn("this machine has lost its address", "reason", why)
}

// restartProcess replaces this process by the program's file as it is on the disk now.
func restartProcess(environ []string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding the program: %w", err)
	}
	err = unix.Exec(self, os.Args, environ)
	return fmt.Errorf("starting %s: %w", self, err)
}
