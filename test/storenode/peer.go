// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"time"

	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/test/testca"
)

// handshakeTimeout bounds a TLS handshake, so that a connection into a partition does not stay for good.
const handshakeTimeout = 2 * time.Second

// peerNetwork is a raftstore.Network over mutual TLS: a peer with a certificate of the authority is a server.
func peerNetwork(o options) (*raftstore.Network, error) {
	conf, err := testca.Files{CA: o.peerCA, Cert: o.peerCert, Key: o.peerKey}.MutualTLS()
	if err != nil {
		return nil, fmt.Errorf("peer certificate: %w", err)
	}
	l, err := net.Listen("tcp", o.peerAddress)
	if err != nil {
		return nil, err
	}
	return &raftstore.Network{
		Address:  o.peerAddress,
		Listener: tls.NewListener(l, conf),
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
			defer cancel()
			d := &tls.Dialer{NetDialer: &net.Dialer{}, Config: conf}
			return d.DialContext(ctx, "tcp", address)
		},
	}, nil
}
