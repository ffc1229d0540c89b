// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
)

// watchCache measures the bytes that upstream's watch cache holds of each object,
// besides the store: the API server's second copy, which ours does without.
func (b *bench) watchCache(ctx context.Context, etcdServer *server, few, many int) (float64, error) {
	if b.watchcache == "" {
		return 0, nil
	}
	endpoint := "http://" + etcdServer.client
	var at [2]float64
	for i, objects := range []int{few, many} {
		fill := exec.CommandContext(ctx, b.watchcache, "-etcd", endpoint, "-from", strconv.Itoa(i*few), "-fill", strconv.Itoa(objects-i*few))
		fill.Stderr, fill.SysProcAttr = os.Stderr, dieWithUs()
		if err := fill.Run(); err != nil {
			return 0, fmt.Errorf("fill etcd with ConfigMaps: %w", err)
		}
		var err error
		if at[i], err = b.cacheMemory(ctx, endpoint, objects); err != nil {
			return 0, fmt.Errorf("watch cache of %d objects: %w", objects, err)
		}
	}
	return (at[1] - at[0]) * 1024 * 1024 / float64(many-few), nil
}

// cacheMemory starts a watch cache and reads its memory once it has all objects.
func (b *bench) cacheMemory(ctx context.Context, endpoint string, objects int) (float64, error) {
	cache := exec.CommandContext(ctx, b.watchcache, "-etcd", endpoint)
	cache.SysProcAttr = dieWithUs()
	out, err := cache.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cache.Start(); err != nil {
		return 0, err
	}
	defer func() {
		_ = cache.Process.Kill()
		_, _ = io.Copy(io.Discard, out)
		_ = cache.Wait()
	}()
	var reply struct{ Objects int }
	if err := json.NewDecoder(out).Decode(&reply); err != nil {
		return 0, err
	}
	if reply.Objects != objects {
		return 0, fmt.Errorf("it has %d", reply.Objects)
	}
	return anonymous(cache.Process.Pid), nil
}
