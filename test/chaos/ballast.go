// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// ballast keeps the log growing, so that snapshots are taken and old segments dropped.
func ballast(ctx context.Context, c *cluster, rnd *rand.Rand) {
	for ctx.Err() == nil {
		all := c.all()
		_ = with(all[rnd.IntN(len(all))], func(etc *clientv3.Client) error {
			for range 20 {
				put, cancel := context.WithTimeout(ctx, time.Second)
				_, err := etc.Put(put, fmt.Sprintf("b/%d", rnd.IntN(10)), incompressible(rnd, 32<<10))
				cancel()
				if err != nil {
					return err
				}
				pause(ctx, 100*time.Millisecond)
			}
			return nil
		})
		pause(ctx, 100*time.Millisecond)
	}
}

// incompressible is a value that the log cannot pack.
func incompressible(rnd *rand.Rand, size int) string {
	b := make([]byte, 0, size)
	for len(b) < size {
		b = binary.LittleEndian.AppendUint64(b, rnd.Uint64())
	}
	return string(b)
}

// bulk writes so many bytes at a server.
func bulk(ctx context.Context, s *server, rnd *rand.Rand, size int) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	const piece = 1 << 20
	return with(s, func(etc *clientv3.Client) error {
		for i := range size / piece {
			if ctx.Err() != nil {
				return nil
			}
			_, _ = etc.Put(ctx, fmt.Sprintf("b/bulk%d", i%3), incompressible(rnd, piece)) // what got lost is no loss
		}
		return nil
	})
}
