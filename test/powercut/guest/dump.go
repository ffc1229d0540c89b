// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/test/powercut/report"
)

// contents is what the clients go on from.
type contents struct {
	keys   []*mvccpb.KeyValue
	leases map[int][]int64 // by client
}

func (c *contents) keysOf(client int) map[string]*mvccpb.KeyValue {
	all := map[string]*mvccpb.KeyValue{}
	prefix := fmt.Sprintf("%s%d/", report.Prefix, client)
	for _, kv := range c.keys {
		if strings.HasPrefix(string(kv.Key), prefix) {
			all[strings.TrimPrefix(string(kv.Key), report.Prefix)] = kv
		}
	}
	return all
}

// dump reports all that a client of the store can know: what is there now and
// was there at the compaction revision, every event since, and the leases.
func dump(ctx context.Context, s *raftstore.Store, out *reporter) (*contents, error) {
	c := s.Client()
	defer func() { _ = c.Close() }()
	now, err := c.KV.Get(ctx, report.Prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	revision, compacted := now.Header.Revision, s.Status().Compacted
	lines := []string{fmt.Sprintf("d %d %d", revision, compacted)}
	for _, kv := range now.Kvs {
		lines = append(lines, "k "+version(kv).String())
	}
	if compacted > 0 {
		then, err := c.KV.Get(ctx, report.Prefix, clientv3.WithPrefix(), clientv3.WithRev(compacted))
		if err != nil {
			return nil, err
		}
		for _, kv := range then.Kvs {
			lines = append(lines, "b "+version(kv).String())
		}
	}
	events, err := history(ctx, c.Client, compacted+1, revision)
	if err != nil {
		return nil, err
	}
	for _, e := range events {
		v := version(e.Kv)
		v.Deleted = e.Type == mvccpb.Event_DELETE
		lines = append(lines, "h "+v.String())
	}
	leases, err := c.Lease.Leases(ctx)
	if err != nil {
		return nil, err
	}
	found := &contents{keys: now.Kvs, leases: map[int][]int64{}}
	for _, l := range leases.Leases {
		ttl, err := c.Lease.TimeToLive(ctx, l.ID, clientv3.WithAttachedKeys())
		if err != nil {
			return nil, err
		}
		line := fmt.Sprintf("l %d %d", l.ID, ttl.GrantedTTL)
		for _, key := range ttl.Keys {
			line += " " + strings.TrimPrefix(string(key), report.Prefix)
		}
		lines = append(lines, line)
		owner := leaseOwner(int64(l.ID))
		found.leases[owner] = append(found.leases[owner], int64(l.ID))
	}
	out.lines(append(lines, "checked")...)
	return found, nil
}

func version(kv *mvccpb.KeyValue) report.Version {
	return report.Version{
		Revision: kv.ModRevision, Key: strings.TrimPrefix(string(kv.Key), report.Prefix), Create: kv.CreateRevision,
		Count: kv.Version, Lease: kv.Lease, Writer: report.Writer(kv.Value), Sum: crc32.ChecksumIEEE(kv.Value),
	}
}

// history watches from one revision to another.
func history(ctx context.Context, c *clientv3.Client, from, to int64) ([]*clientv3.Event, error) {
	if from > to || to == 1 { // nothing was ever written, or all is compacted
		return nil, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var events []*clientv3.Event
	for resp := range c.Watch(ctx, report.Prefix, clientv3.WithPrefix(), clientv3.WithRev(from)) {
		if err := resp.Err(); err != nil {
			return nil, fmt.Errorf("watch from revision %d: %w", from, err)
		}
		events = append(events, resp.Events...)
		if len(events) > 0 && events[len(events)-1].Kv.ModRevision >= to {
			return events, nil
		}
	}
	return nil, errors.New("the watch from revision " + strconv.FormatInt(from, 10) + " ended")
}
