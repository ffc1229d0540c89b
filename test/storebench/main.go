// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"
)

type options struct {
	dir, etcd, storenode, json string
	quick                      bool
	rounds                     int
	voters, only               string
	limit                      time.Duration
	burn                       time.Duration
}

func parseFlags() options {
	var o options
	flag.StringVar(&o.dir, "dir", "", "directory for all servers' data, on a disk; what the run made there is removed")
	flag.StringVar(&o.etcd, "etcd", "", "the etcd program")
	flag.StringVar(&o.storenode, "storenode", "", "the storenode program")
	flag.StringVar(&o.json, "json", "", "file for all figures")
	flag.BoolVar(&o.quick, "quick", false, "two minutes instead of twenty-five: one short round")
	flag.IntVar(&o.rounds, "rounds", 3, "how often rates are measured, in turns")
	flag.StringVar(&o.voters, "voters", "1,3", "numbers of voters")
	flag.StringVar(&o.only, "only", "", "regular expression: sections to run, of rates, watches, memory, disk, failover, starved")
	flag.DurationVar(&o.limit, "limit", 25*time.Minute, "no section starts after this, and the one that runs is cut off a minute later")
	flag.DurationVar(&o.burn, "burn", 0, "do nothing but keep a processor busy for so long")
	flag.Parse()
	if o.quick {
		o.rounds = 1
	}
	return o
}

func main() {
	o := parseFlags()
	if o.burn > 0 {
		burn(o.burn)
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "storebench:", err)
		os.Exit(1)
	}
}

// bench is one run.
type bench struct {
	options
	device *device
	report *report
	began  time.Time
	// systems are measured in turns, in this order.
	systems []system
}

func run(ctx context.Context, o options) error {
	if o.dir == "" || o.etcd == "" || o.storenode == "" {
		return errors.New("-dir, -etcd and -storenode are needed; `make bench-store` gives them")
	}
	if err := os.MkdirAll(o.dir, 0o755); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(o.dir, "run-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	o.dir = dir
	device, err := openDevice(dir)
	if err != nil {
		return err
	}
	keys, err := newPKI(filepath.Join(dir, "pki"))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.limit+time.Minute)
	defer cancel()
	b := &bench{
		options: o, device: device, report: newReport(), began: time.Now(),
		systems: []system{&coracle{program: o.storenode, pki: keys}, &etcd{program: o.etcd, pki: keys}},
	}
	fmt.Printf("machine: %d processors, %s; %s\n", runtime.NumCPU(), memorySize(), device)
	err = b.sections(ctx)
	b.report.print(os.Stdout)
	fmt.Printf("took %.0f s\n", time.Since(b.began).Seconds())
	if o.json != "" {
		err = errors.Join(err, b.report.write(o.json, device))
	}
	return err
}

type section struct {
	name   string
	run    func(ctx context.Context, voters int) error
	voters []int // numbers of voters it makes sense for
}

// sections runs what was asked for. One that fails is reported and the others
// still run.
func (b *bench) sections(ctx context.Context) error {
	all := []section{
		{"failover", b.failover, []int{3}},
		{"starved", b.starved, []int{3}},
		{"disk", b.disk, []int{1}},
		{"memory", b.memory, []int{1}},
		{"watches", b.watches, []int{1}},
		{"rates", b.rates, []int{1, 3}}, // last: a round less does no harm
	}
	only, err := regexp.Compile(b.only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	var errs []error
	for _, s := range all {
		for _, voters := range s.voters {
			if !only.MatchString(s.name) || !strings.Contains(","+b.voters+",", fmt.Sprintf(",%d,", voters)) {
				continue
			}
			name := fmt.Sprintf("%s, %s", s.name, count(voters, "voter"))
			if time.Since(b.began) > b.limit || ctx.Err() != nil {
				errs = append(errs, fmt.Errorf("%s: left out, time is over", name))
				continue
			}
			began := time.Now()
			if err := s.run(ctx, voters); err != nil {
				errs = append(errs, fmt.Errorf("%s failed", name))
				fmt.Printf("%s: %v\n", name, err)
			}
			fmt.Printf("%s: %.0f s\n", name, time.Since(began).Seconds())
		}
	}
	return errors.Join(errs...)
}

// pick is full, or brief in a quick run.
func pick[T any](b *bench, full, brief T) T {
	if b.quick {
		return brief
	}
	return full
}
