// SPDX-License-Identifier: Apache-2.0

// Storenode is one server of a store as a process, for tests and benchmarks that want real processes and real
// sockets: it opens raftstore with peers over mutual TLS, serves etcd's v3 API in the clear on the address that it is
// given (loopback or a namespace of a test only), and is steered by lines of JSON on its standard input.
//
// It prints "ready" when a linearizable read has succeeded, closes the store on SIGTERM, and is no part of the product.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coracle-k8s/coracle/raftstore"
)

// closeTimeout bounds Store.Close after SIGTERM: a disk may be stalled on purpose.
const closeTimeout = 30 * time.Second

type options struct {
	store         raftstore.Options
	join          string
	peerAddress   string
	peerCert      string
	peerKey       string
	peerCA        string
	clientAddress string
	debug         bool
	bound         bool
}

func parseFlags(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("storenode", flag.ContinueOnError)
	f.StringVar(&o.store.Dir, "dir", "", "the store's directory")
	f.StringVar(&o.store.NodeID, "name", "", "name of the server")
	f.StringVar(&o.store.ClusterID, "cluster", "", "name of the cluster")
	f.StringVar(&o.join, "join", "", "addresses of servers to join, with commas between")
	f.StringVar(&o.peerAddress, "peer-address", "", "address for the other servers; empty: there are none")
	f.StringVar(&o.peerCert, "peer-cert", "", "certificate shown to the other servers (PEM)")
	f.StringVar(&o.peerKey, "peer-key", "", "its key (PEM)")
	f.StringVar(&o.peerCA, "peer-ca", "", "authority that signed all servers' certificates (PEM)")
	f.StringVar(&o.clientAddress, "client-address", "", "address of etcd's v3 API")
	f.DurationVar(&o.store.ElectionTimeout, "election-timeout", 0, "see raftstore.Options; 0: its default, as below")
	f.Int64Var(&o.store.QuotaBytes, "quota", 0, "QuotaBytes")
	f.DurationVar(&o.store.HistoryAge, "history-age", 0, "HistoryAge")
	f.Int64Var(&o.store.HistoryBytes, "history-bytes", 0, "HistoryBytes")
	f.IntVar(&o.store.MaxVoters, "max-voters", 0, "MaxVoters")
	f.BoolVar(&o.debug, "debug", false, "log everything")
	f.BoolVar(&o.bound, "bound", false, "end when standard input does")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if o.join != "" {
		o.store.Join = strings.Split(o.join, ",")
	}
	level := slog.LevelInfo
	if o.debug {
		level = slog.LevelDebug
	}
	o.store.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	return o, nil
}

func main() {
	o, err := parseFlags(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err == nil {
		err = run(o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "storenode:", err)
		os.Exit(1)
	}
}

func run(o options) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	n := &node{opts: o, out: os.Stdout}
	n.prepare()
	if o.peerAddress != "" {
		network, err := peerNetwork(o)
		if err != nil {
			return err
		}
		n.opts.store.Network = network
	}
	var clients net.Listener
	if o.clientAddress != "" { // before the store opens: clients connect, and wait
		var err error
		if clients, err = net.Listen("tcp", o.clientAddress); err != nil {
			return err
		}
	}
	store, err := raftstore.Open(ctx, n.opts.store)
	if err != nil {
		return err
	}
	n.store = store
	return n.serve(ctx, stop, clients)
}

// serve runs until ctx ends or the API's server fails, then closes the store.
func (n *node) serve(ctx context.Context, stop func(), clients net.Listener) error {
	var tasks sync.WaitGroup
	defer tasks.Wait()
	served := make(chan error, 1)
	if clients != nil {
		tasks.Go(func() {
			if err := n.store.ServeGRPC(ctx, clients); err != nil {
				served <- err
			}
		})
	}
	tasks.Go(func() {
		if n.store.WaitReady(ctx) == nil {
			n.print("ready")
		}
	})
	go n.control(ctx, stop) // not waited for: it reads from standard input, which nothing interrupts
	var err error
	select {
	case <-ctx.Done():
	case err = <-served:
		stop()
	}
	closing, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	return errors.Join(err, n.store.Close(closing))
}
