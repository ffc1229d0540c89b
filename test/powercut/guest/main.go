// SPDX-License-Identifier: Apache-2.0

// Command guest is the first process of a machine whose power gets cut. It
// mounts the disk, opens the store on it, reports all that is in it, and then
// writes with many clients until the machine is gone.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/raftstore"
)

const (
	diskDir  = "/disk"
	storeDir = "/disk/store"
	clients  = 16
	// stuckAfter is less than the host's patience.
	stuckAfter = 2 * time.Minute
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guest: runs as the first process of a machine that the power cut test makes")
		os.Exit(2)
	}
	out, err := openReporter("/dev/ttyS0")
	if err == nil {
		err = run(context.Background(), out)
	}
	fmt.Fprintln(os.Stderr, "guest:", err)
	if out != nil {
		out.lines(fmt.Sprintf("! %q", err))
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// argument is a number from the kernel's command line.
func argument(name string) (int, error) {
	n, err := strconv.Atoi(os.Getenv(name))
	if err != nil {
		return 0, fmt.Errorf("argument %s: %w", name, err)
	}
	return n, nil
}

func run(ctx context.Context, out *reporter) error {
	var boot, seed, server, servers int
	for name, n := range map[string]*int{"boot": &boot, "seed": &seed, "server": &server, "servers": &servers} {
		var err error
		if *n, err = argument(name); err != nil {
			return err
		}
	}
	if err := mountDisk(); err != nil {
		return err
	}
	news, err := watchFiles(out)
	if err != nil {
		return err
	}
	if err := news.add(storeDir); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	stuck := time.AfterFunc(stuckAfter, printStacks)
	s, err := openStore(ctx, out, server, servers)
	if err != nil {
		return err
	}
	found, err := dump(ctx, s, out)
	stuck.Stop()
	if err != nil {
		return err
	}
	if err := errors.Join(news.add(filepath.Join(storeDir, "log")), news.add(filepath.Join(storeDir, "snapshots"))); err != nil {
		return err
	}
	if err := out.waitForGo(); err != nil {
		return err
	}
	out.lines("@ writing")
	var all sync.WaitGroup
	errs := make([]error, clients)
	for i := range clients / servers {
		all.Go(func() {
			number := (server-1)*clients + i
			c := &client{
				store: s, out: out, boot: boot, number: number, keys: found.keysOf(number), leases: found.leases[number],
				random: rand.New(rand.NewPCG(uint64(seed), uint64(boot)<<16|uint64(number))),
			}
			if errs[i] = c.run(ctx); errs[i] != nil {
				out.lines(fmt.Sprintf("! %q", fmt.Sprintf("client %d: %v", number, errs[i])))
			}
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	select {} // every client has a write of which it does not know what became
}

// printStacks says on the console what everything waits for.
func printStacks() {
	_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
}

// openStore opens the store and returns when a linearizable read succeeded and,
// in a cluster, all its servers vote. An idle guest goes no further.
func openStore(ctx context.Context, out *reporter, server, servers int) (*raftstore.Store, error) {
	o := raftstore.Options{
		Dir: storeDir, NodeID: fmt.Sprintf("server%d", server), ClusterID: "powercut",
		ElectionTimeout: time.Second, // three kernels share a processor
		// A client compacts, and nothing else: the store, at its default of 32 MiB, would compact beyond that client
		// where three servers write much in one round.
		HistoryBytes: 1 << 30, HistoryAge: time.Hour,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	if servers > 1 {
		network, err := openNetwork(server)
		if err != nil {
			return nil, err
		}
		o.Network = network
		if server > 1 {
			o.Join = []string{address(1)}
		}
	}
	out.lines("@ opening")
	s, err := raftstore.Open(ctx, o)
	if err != nil {
		return nil, err
	}
	for voters := 0; voters < servers; time.Sleep(10 * time.Millisecond) {
		if err := s.WaitReady(ctx); err != nil {
			return nil, err
		}
		voters = 0
		for _, m := range s.Cluster().Members() {
			if m.Voter {
				voters++
			}
		}
	}
	// With other servers to learn from, a store gets over damage by itself.
	// After a power cut there must be none.
	if aside, err := filepath.Glob(storeDir + ".*"); err != nil || len(aside) > 0 {
		return nil, fmt.Errorf("the store set its directory aside as damaged: %v, %w", aside, err)
	}
	if os.Getenv("idle") == "true" {
		out.lines("@ idle")
		select {}
	}
	return s, nil
}

// mountDisk loads the disk's driver and mounts the disk.
func mountDisk() error {
	driver, err := os.Open("/virtio_blk.ko")
	if err != nil {
		return fmt.Errorf("load the disk's driver: %w", err)
	}
	defer driver.Close()
	if err := unix.FinitModule(int(driver.Fd()), "", 0); err != nil {
		return fmt.Errorf("load the disk's driver: %w", err)
	}
	for range 1000 {
		if err = unix.Mount("/dev/vda", diskDir, "ext4", 0, os.Getenv("journal")); !errors.Is(err, unix.ENOENT) {
			break
		}
		time.Sleep(10 * time.Millisecond) // the kernel makes the device in its own time
	}
	if err != nil {
		return fmt.Errorf("mount the disk: %w", err)
	}
	return nil
}
