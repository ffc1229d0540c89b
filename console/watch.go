// SPDX-License-Identifier: Apache-2.0

package console

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// event is an event of the API's watch.
type event struct {
	Type   string          `json:"type"`
	Object json.RawMessage `json:"object"`
}

// readEvents reads a watch until it ends.
func readEvents(ctx context.Context, body io.Reader, events chan<- event) error {
	limited := &io.LimitedReader{R: body, N: maxEvent}
	d := json.NewDecoder(bufio.NewReader(limited))
	for {
		var e event
		limited.N = maxEvent
		if err := d.Decode(&e); err != nil {
			if limited.N <= 0 {
				return fmt.Errorf("watching: an event is longer than %d MB", maxEvent>>20)
			}
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("watching: %w", err)
		}
		select {
		case events <- e:
		case <-ctx.Done():
			return nil
		}
	}
}

func eventError(object json.RawMessage) error {
	var s metav1.Status
	if err := json.NewDecoder(bytes.NewReader(object)).Decode(&s); err != nil {
		return fmt.Errorf("watching: %w", err)
	}
	return &apierrors.StatusError{ErrStatus: s}
}

// pendingChanges are the changes that the next message to a page contains.
type pendingChanges struct {
	rows   map[string]row
	del    []string
	rv     string
	events int
}

func (g *pendingChanges) empty() bool { return len(g.rows) == 0 && len(g.del) == 0 }

func (g *pendingChanges) message() message {
	set := slices.AppendSeq(make([]row, 0, len(g.rows)), maps.Values(g.rows)) // not nil
	return message{"type": "changes", "set": set, "del": g.del, "rv": g.rv}
}
