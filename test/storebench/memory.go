// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/coracle-k8s/coracle/test/storebench/load"
)

// calm is how long a process rests before its memory is read.
const calm = 4 * time.Second

// memory measures anonymous memory with few and with many objects of 1 KB, and
// the time from the start of a killed server to its first linearizable read.
func (b *bench) memory(ctx context.Context, voters int) error {
	for _, sys := range b.systems {
		if err := b.memoryOf(ctx, sys, voters); err != nil {
			return fmt.Errorf("%s: %w", sys.name(), err)
		}
	}
	return nil
}

func (b *bench) memoryOf(ctx context.Context, sys system, voters int) error {
	c, err := b.newCluster(ctx, sys, voters)
	if err != nil {
		return err
	}
	defer c.close()
	s := c.servers[0]
	few, many := pick(b, 10_000, 3_000), pick(b, 100_000, 30_000)
	var rest [2]float64
	for i, objects := range []int{few, many} {
		// The second fill has a prefix of its own, and the first one's objects count.
		if err := fill(ctx, s, objects-i*few, fmt.Sprintf("/registry/memory-%d/", i)); err != nil {
			return err
		}
		if rest[i], err = b.atRest(ctx, s, fmt.Sprintf("memory with %d objects of 1 KB, at rest", objects)); err != nil {
			return err
		}
	}
	b.report.add(sys, "memory at rest for each further object of 1 KB", "anon B", (rest[1]-rest[0])*1024*1024/float64(many-few))
	for range pick(b, 3, 1) {
		took, err := c.restart(ctx, s)
		if err != nil {
			return err
		}
		b.report.add(sys, fmt.Sprintf("kill -9 with %d objects: start to first linearizable read", many), "ms", ms(took))
	}
	return nil
}

// atRest notes a server's anonymous memory at rest, in MB: coracle gives memory back every few minutes, which is done
// here by hand.
func (b *bench) atRest(ctx context.Context, s *server, name string) (float64, error) {
	time.Sleep(pick(b, calm, calm/4)) // what is measured: the memory after a while
	if _, ours := s.sys.(*coracle); ours {
		if _, err := s.sys.local(ctx, s, load.Spec{Kind: load.Trim}); err != nil {
			return 0, err
		}
	}
	anon := anonymous(s.pid())
	b.report.add(s.sys, name, "anon MB", anon)
	return anon, nil
}

// restart kills a server, starts it again and reads from it.
func (c *cluster) restart(ctx context.Context, s *server) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, formTime)
	defer cancel()
	for _, conn := range s.connections {
		_ = conn.Close() // or its back-off would be measured
	}
	s.connections = nil
	s.process.Kill()
	began := time.Now()
	if err := c.start(s); err != nil {
		return 0, err
	}
	for ctx.Err() == nil {
		if conn, err := net.Dial("tcp", s.client); err == nil { // first: gRPC would back off for a second
			_ = conn.Close()
		} else {
			time.Sleep(2 * time.Millisecond) // between two looks at a condition
			continue
		}
		clients, err := s.connect(1)
		if err != nil {
			return 0, err
		}
		try, stop := context.WithTimeout(ctx, 2*time.Second)
		_, err = clients[0].KV.Get(try, "health")
		stop()
		if err == nil {
			return time.Since(began), nil
		}
		_ = clients[0].Close()
		s.connections = nil
	}
	return 0, fmt.Errorf("%s of %s did not answer within %s:\n%s", s.name, c.sys.name(), formTime, c.logs())
}
