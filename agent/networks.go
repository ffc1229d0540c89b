// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/coracle-k8s/coracle/internal/loadbalancer"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/vip"
)

const (
	// networksCheck is the interval of checks of the machine's networks once the Node's annotation has them.
	networksCheck = time.Minute
	// networksRetry is how long to wait after a write to the Node failed: the Node may not be registered yet.
	networksRetry = time.Second
)

// syncNetworks writes to the Node in which networks this machine can announce addresses.
func syncNetworks(ctx context.Context, o Options) error {
	nodes, err := nodeClient(o.KubeletKubeconfig)
	if err != nil {
		return err
	}
	published, complaint := "nothing yet", ""
	for {
		pause := networksRetry
		now, err := networks()
		if err == nil && now != published {
			err = annotate(ctx, nodes, o.Name, loadbalancer.NetworksAnnotation, now)
		}
		if err == nil {
			published, pause = now, networksCheck
		} else if ctx.Err() == nil && err.Error() != complaint {
			complaint = err.Error()
			o.Logger.Debug("agent: the networks in which this machine can announce addresses could not be written to the Node yet", "error", err)
		}
		if !timers.Sleep(ctx, pause) {
			return nil
		}
	}
}

func networks() (string, error) {
	links, err := vip.Links()
	if err != nil {
		return "", err
	}
	var out []string
	for _, l := range links {
		if l.Flags&net.FlagLoopback != 0 || l.Flags&net.FlagUp == 0 || len(l.HardwareAddr) != 6 {
			continue
		}
		for _, p := range l.Addresses {
			if p.Addr().IsGlobalUnicast() && !p.IsSingleIP() && p.Bits() >= loadbalancer.WidestNetwork {
				out = append(out, p.Masked().String())
			}
		}
	}
	slices.Sort(out)
	return strings.Join(slices.Compact(out), ","), nil
}
