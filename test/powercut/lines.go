// SPDX-License-Identifier: Apache-2.0

package powercut

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/coracle-k8s/coracle/test/powercut/report"
)

// listener reads the lines of one boot into the ledger.
type listener struct {
	ledger *Ledger
	boot   int
	moment func(name string) // something began in the guest

	found   *Found // being read
	lines   int
	acked   int
	unknown []string // writes of whose outcome a client despaired
}

// line is for each complete line. An error ends the test.
func (h *listener) line(line string) error {
	h.lines++
	kind, rest, _ := strings.Cut(line, " ")
	switch kind {
	case "s":
		w, err := report.ParseSent(h.boot, rest)
		if err != nil {
			return err
		}
		return h.ledger.Sent(w)
	case "a":
		var client, n int
		var revision int64
		if _, err := fmt.Sscan(rest, &client, &n, &revision); err != nil {
			return fmt.Errorf("in %q: %w", line, err)
		}
		h.acked++
		if err := h.ledger.Acknowledged(client, n, revision); err != nil {
			return err
		}
		h.moment("acknowledged")
		return nil
	case "@":
		h.moment(rest)
		return nil
	case "?":
		h.unknown = append(h.unknown, rest)
		return nil
	case "!":
		return fmt.Errorf("the guest: %s", rest)
	case "checked":
		if err := h.ledger.Judge(h.found); err != nil {
			return err
		}
		h.moment("checked")
		return nil
	}
	return h.content(kind, rest)
}

// content reads a line about what is in the store.
func (h *listener) content(kind, rest string) error {
	if kind == "d" {
		h.found = &Found{Leases: map[int64][]string{}}
		_, err := fmt.Sscan(rest, &h.found.Revision, &h.found.Compacted)
		return err
	}
	if h.found == nil {
		return fmt.Errorf("a line that does not belong there: %s %s", kind, rest)
	}
	if kind == "l" {
		words := strings.Fields(rest)
		id, err := strconv.ParseInt(words[0], 10, 64)
		h.found.Leases[id] = words[2:]
		return err
	}
	into, ok := map[string]*[]report.Version{"k": &h.found.Live, "b": &h.found.Base, "h": &h.found.Events}[kind]
	if !ok {
		return fmt.Errorf("a line of an unknown kind: %s %s", kind, rest)
	}
	v, err := report.ParseVersion(rest)
	*into = append(*into, v)
	return err
}
