// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
)

// load drives the store from within its process, for benchmarks.
func (n *node) load(context.Context, json.RawMessage) (any, error) {
	return nil, errors.New("no load generator")
}
