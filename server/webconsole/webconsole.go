// SPDX-License-Identifier: Apache-2.0

// Package webconsole serves the web console to browsers of other machines, and maintains the Service
// kube-system/console, by which an Ingress names it. It owns the console's port, that Service, and the endpoint slice
// of its own server. It does not change a Service of that name that was made by others.
package webconsole

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/console"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/connlimit"
	"github.com/coracle-k8s/coracle/internal/status"
)

// Options are the parameters of New.
type Options struct {
	// Listen is the address at which the console serves browsers, as ADDRESS:PORT. Empty disables that. Disabled says
	// that the cluster has no console.
	Listen   string
	Disabled bool
	// APIServerArgs and OIDC determine how users log in.
	APIServerArgs []string
	OIDC          config.ConsoleOIDC

	// Server is the name of the server's node. Node says whether it has one. The machine's addresses are NodeIPs, or
	// AdvertiseAddress if none of these is of the first Service network's family.
	Server           string
	Node             bool
	NodeIPs          []net.IP
	AdvertiseAddress net.IP
	ServiceCIDRs     []netip.Prefix

	// Program is the path of coracle, which is Helm in a child process.
	Program string
	// Ended is called after work that leaves much garbage for the collector.
	Ended func()

	Part   *status.Part
	Logger *slog.Logger
}

// Console is the web console of one server.
type Console struct {
	o    Options
	port *connlimit.Port // for browsers; nil for none
	oidc *console.OIDC   // the provider by which users log in; nil for none
}

// New opens the console's port, so that a port in use is noticed before anything starts.
func New(ctx context.Context, o Options) (_ *Console, err error) {
	c := &Console{o: o}
	switch {
	case o.Disabled:
		o.Part.Set(status.Disabled, "")
		return c, nil
	case o.Listen == "":
		o.Part.Set(status.Disabled, "not for browsers of other machines (--console-listen); coracle console works")
		return c, nil
	}
	if c.oidc, err = o.provider(); err != nil {
		return nil, err
	}
	if c.port, err = connlimit.Listen(ctx, "console", "tcp", o.Listen, &connlimit.Table{Max: console.MaxUnknown}); err != nil {
		return nil, fmt.Errorf("opening the console's port, %s (--console-listen): %w", o.Listen, err)
	}
	return c, nil
}

// Close closes the port.
func (c *Console) Close() {
	if c != nil && c.port != nil {
		_ = c.port.Close() // it may be closed already
	}
}

// Setting returns the response at status.ConsoleSettingPath.
func (c *Console) Setting(context.Context) (status.Console, error) {
	return status.Console{Disabled: c.o.Disabled}, nil
}

// endpoint returns the address at which others reach a console with this listening address. If it listens on all
// addresses, this is the node's, of the first Service network's family. It is zero for loopback.
func (o *Options) endpoint(listening net.Addr) netip.AddrPort {
	tcp, isTCP := listening.(*net.TCPAddr)
	if !isTCP {
		return netip.AddrPort{}
	}
	at := tcp.AddrPort()
	switch ip := at.Addr().Unmap(); {
	case ip.IsLoopback():
		return netip.AddrPort{}
	case !ip.IsUnspecified():
		return netip.AddrPortFrom(ip, at.Port())
	}
	own, _ := netip.AddrFromSlice(o.AdvertiseAddress)
	for _, ip := range o.NodeIPs {
		a, _ := netip.AddrFromSlice(ip)
		if len(o.ServiceCIDRs) > 0 && a.Unmap().Is4() == o.ServiceCIDRs[0].Addr().Is4() {
			own = a
			break
		}
	}
	return netip.AddrPortFrom(own.Unmap(), at.Port())
}

// Serve serves browsers until ctx is done. certificate returns the server's certificate. api is a configuration for the
// API at this machine, without credentials.
func (c *Console) Serve(ctx context.Context, certificate func() (*tls.Certificate, error), api *rest.Config) {
	if c.port == nil {
		return
	}
	c.o.Part.Set(status.Running, "at https://"+c.port.Addr().String())
	err := console.ServeRemote(ctx, console.RemoteOptions{
		Listener: c.port.Bounded(nil), Certificate: certificate, API: api,
		OIDC: c.oidc, Program: c.o.Program, Ended: c.o.Ended, Logger: c.o.Logger.With("part", "console"),
	})
	if err != nil {
		c.o.Part.Set(status.Failed, err.Error())
		c.o.Logger.Error("the console is not served; everything else is", "error", err)
		return
	}
	c.o.Part.Set(status.Stopped, "")
}
