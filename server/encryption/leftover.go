// SPDX-License-Identifier: Apache-2.0

package encryption

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coracle-k8s/coracle/internal/convert"
)

const (
	// registryPrefix is the prefix of the API server's keys in the store.
	registryPrefix = "/registry/"
	// sealedBy, followed by a key's name and a colon, is the prefix of values that are encrypted with that key
	// (upstream's envelope for secretbox).
	sealedBy = "k8s:enc:secretbox:v1:"
	// leftoverPage is the number of values in one response of the store.
	leftoverPage = 200
	// maxRewrites is how often every object is written again while a value needs an older key.
	maxRewrites = 3
)

// countLeftover counts the values in the store that are encrypted with one of these keys. It also returns the store's
// key of one of them.
func countLeftover(ctx context.Context, kv clientv3.KV, keys []string) (n int, example string, err error) {
	marks := convert.Slice(keys, func(k string) []byte { return []byte(sealedBy + k + ":") })
	for from := registryPrefix; ; {
		page, err := kv.Get(ctx, from, clientv3.WithRange(clientv3.GetPrefixRangeEnd(registryPrefix)), clientv3.WithLimit(leftoverPage))
		if err != nil {
			return 0, "", fmt.Errorf("finding objects that are encrypted with an older key: %w", err)
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

// rewriteAll calls rewrite until no value in the store needs one of these keys. A successful rewrite by the API server
// is not enough to drop a key.
func rewriteAll(ctx context.Context, kv clientv3.KV, keys []string, rewrite func() error) error {
	for range maxRewrites {
		if err := rewrite(); err != nil {
			return err
		}
		if n, _, err := countLeftover(ctx, kv, keys); n == 0 || err != nil {
			return err
		}
	}
	n, example, err := countLeftover(ctx, kv, keys)
	if n == 0 || err != nil {
		return err
	}
	return fmt.Errorf("%d objects are encrypted with an older key although all were written again, %s for example. Does the API server "+
		"serve their kinds (kubectl api-resources)?", n, example)
}
