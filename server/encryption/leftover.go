// SPDX-License-Identifier: Apache-2.0

package encryption

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// registry is where the API server keeps its objects.
	registry = "/registry/"
	// sealedBy, with a key's name and a colon behind it, is what a value begins with that was encrypted with that key
	// (upstream's envelope for secretbox).
	sealedBy = "k8s:enc:secretbox:v1:"
	// leftoverPage is how many values are looked at in one answer of the store.
	leftoverPage = 200
	// rewrites is how often every object is written again while something needs an older key.
	rewrites = 3
)

// leftover looks in the store itself for values that only one of these keys opens. It returns their number, and the
// name of one.
func leftover(ctx context.Context, kv clientv3.KV, keys []string) (n int, example string, err error) {
	var marks [][]byte
	for _, k := range keys {
		marks = append(marks, []byte(sealedBy+k+":"))
	}
	for from := registry; ; {
		page, err := kv.Get(ctx, from, clientv3.WithRange(clientv3.GetPrefixRangeEnd(registry)), clientv3.WithLimit(leftoverPage))
		if err != nil {
			return 0, "", fmt.Errorf("looking for what is encrypted with an older key: %w", err)
		}
		for _, at := range page.Kvs {
			if slices.ContainsFunc(marks, func(mark []byte) bool { return bytes.HasPrefix(at.Value, mark) }) {
				n, example = n+1, string(at.Key)
			}
		}
		if !page.More || len(page.Kvs) == 0 {
			return n, example, nil
		}
		from = string(page.Kvs[len(page.Kvs)-1].Key) + "\x00"
	}
}

// rewriteAll has every object written again until nothing in the store needs one of these keys: the API server's word
// that it has written them all is not enough to forget a key.
func rewriteAll(ctx context.Context, kv clientv3.KV, keys []string, rewrite func() error) error {
	for range rewrites {
		if err := rewrite(); err != nil {
			return err
		}
		if n, _, err := leftover(ctx, kv, keys); n == 0 || err != nil {
			return err
		}
	}
	n, example, err := leftover(ctx, kv, keys)
	if n == 0 || err != nil {
		return err
	}
	return fmt.Errorf("%d objects are encrypted with an older key although all were written again, %s for example. Does the API server "+
		"offer what they are (kubectl api-resources)?", n, example)
}
