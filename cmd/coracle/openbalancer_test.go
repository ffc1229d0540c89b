// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/agent/balancer"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestAgentWaitsForItsPort: while another program has the port of the API's local address, the agent says which program
// and which port, and goes on once it is free.
func TestAgentWaitsForItsPort(t *testing.T) {
	other := testenv.Must(net.Listen("tcp", testenv.Address(t, "127.0.0.1:0")))(t) // which the agent is to have afterwards
	defer other.Close()
	address := other.Addr().String()
	board := status.NewBoard(time.Now)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	type opened struct {
		servers *balancer.Balancer
		err     error
	}
	done := make(chan opened, 1)
	go func() {
		servers, err := openBalancer(ctx, board, balancer.Options{
			Address: address, File: filepath.Join(t.TempDir(), "servers.json"), Server: "192.0.2.1:6443", Logger: slog.New(slog.DiscardHandler),
		})
		done <- opened{servers, err}
	}()
	for {
		changed := board.Changed()
		if c := board.Components(); len(c) == 1 && c[0].State == status.Failed {
			for _, part := range []string{address, "process " + strconv.Itoa(os.Getpid()), "--lb-server-port"} {
				testenv.True(t, strings.Contains(c[0].Message, part), "%q does not say %q", c[0].Message, part)
			}
			break
		}
		select {
		case <-changed:
		case <-done:
			t.Fatal("the agent does not wait for its port")
		case <-ctx.Done():
			t.Fatalf("the board says %+v", board.Components())
		}
	}
	testenv.NoError(t, other.Close())
	o := <-done
	testenv.NoError(t, o.err)
	stop := startBalancing(ctx, o.servers)
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Errorf("the port is free, and not taken: %v", err)
	} else {
		_ = c.Close()
	}
	testenv.Check(t, stop())
	if c := board.Components(); len(c) != 1 || c[0].State != status.Running {
		t.Errorf("the board says %+v", c)
	}
}

// TestAgentThatWaitsForItsPortStops: it can be stopped meanwhile.
func TestAgentThatWaitsForItsPortStops(t *testing.T) {
	other := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer other.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	o := balancer.Options{Address: other.Addr().String(), Logger: slog.New(slog.DiscardHandler)}
	testenv.Fails(t, testenv.Err(openBalancer(ctx, status.NewBoard(time.Now), o)), "it goes on")
}
