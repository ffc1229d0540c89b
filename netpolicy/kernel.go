// SPDX-License-Identifier: Apache-2.0

package netpolicy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync/atomic"

	"github.com/coracle-k8s/coracle/internal/nft"
)

// table is the node's table in the kernel, as this process has written it.
type table struct {
	applied  *Ruleset    // nil when the kernel's table is unknown
	verified uint32      // the kernel's generation in which the table was last complete
	absent   atomic.Bool // it is known not to exist
}

var kernelTable = nft.Table{Family: nft.INet, Name: nft.PolicyTable}

// apply makes the table match the ruleset, in one transaction. When that fails the old table stays in effect.
func (t *table) apply(ctx context.Context, to *Ruleset) error {
	t.absent.Store(false)
	if err := t.write(ctx, to); err != nil {
		return err
	}
	t.absent.Store(to.isEmpty())
	return nil
}

func (t *table) write(ctx context.Context, to *Ruleset) error {
	if t.applied != nil {
		text := changeCommands(t.applied, to)
		if len(text) == 0 {
			t.applied = to
			return nil
		}
		if err := run(ctx, text); err == nil {
			t.applied = to
			return nil
		}
		// Another program has changed the table: write all of it.
	}
	t.applied = nil
	if to.isEmpty() {
		// A host without any policy need not even have a kernel that supports such tables.
		if ok, err := nft.Exists(kernelTable); err != nil || !ok {
			t.applied = to
			return nil //nolint:nilerr // where tables cannot be listed there is none of ours
		}
	}
	if err := run(ctx, renderReplacement(to)); err != nil {
		return err
	}
	t.applied = to
	return nil
}

// run makes the embedded nft, the first on the PATH, execute all of the commands or none.
func run(ctx context.Context, text []byte) error { return runNFT(ctx, text, "-f", "-") }

// checkNFT returns an error if nft or the kernel would reject the commands.
func checkNFT(ctx context.Context, text []byte) error { return runNFT(ctx, text, "-c", "-f", "-") }

func runNFT(ctx context.Context, text []byte, args ...string) error {
	cmd := exec.CommandContext(ctx, "nft", args...)
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(text), &out, &out
	if err := cmd.Run(); err != nil {
		if first, _, _ := strings.Cut(out.String(), "\n"); first != "" {
			err = errors.Join(err, errors.New(first))
		}
		return fmt.Errorf("writing the nftables table %s: %w", nft.PolicyTable, err)
	}
	return nil
}

// intact reports whether everything that was written still exists. It costs one request as long as no program has
// changed any table of this host. Otherwise it counts chains' rules and sets' elements. It returns true if the kernel
// cannot be asked.
func (t *table) intact() bool {
	if t.applied == nil || t.applied.isEmpty() {
		return true
	}
	generation, err := nft.Generation()
	if err != nil || generation == t.verified {
		return true
	}
	have, err := nft.Count(kernelTable)
	if err != nil {
		return true
	}
	if !t.applied.hasCounts(have) {
		t.applied = nil
		return false
	}
	t.verified = generation
	return true
}

// hasCounts reports whether a table has as many of everything as the ruleset. Elements of intervals are not counted:
// the kernel has one or two for each.
func (r *Ruleset) hasCounts(have nft.Counts) bool {
	chains := map[string]int{}
	for _, f := range baseChains {
		chains[f.chain] = len(f.rules)
	}
	for name, c := range r.Chains {
		chains[name] = len(c.text())
	}
	if len(have.Rules) != len(chains) {
		return false
	}
	for name, n := range chains {
		if got, ok := have.Rules[name]; !ok || got != n {
			return false
		}
	}
	sets := map[string]int{}
	for name, s := range r.Sets {
		sets[name] = len(s.Elems)
		if s.Kind.interval() {
			sets[name] = -1
		}
	}
	for _, f := range []int{4, 6} {
		sets[fmt.Sprint(setSelf, f)] = len(selfElements(r.addresses(), f))
		sets[fmt.Sprint(setOut, f)] = len(outElements(r, f))
		sets[fmt.Sprint(mapIn, f)], sets[fmt.Sprint(mapOut, f)] = 0, 0
	}
	for ip := range r.Pods[ingress] {
		sets[fmt.Sprint(mapIn, familyOf(ip))]++
	}
	for ip := range r.Pods[egress] {
		sets[fmt.Sprint(mapOut, familyOf(ip))]++
	}
	for name, n := range sets {
		if got, ok := have.Elements[name]; !ok || n >= 0 && got != n || n < 0 && got == 0 {
			return false
		}
	}
	return true
}

// Remove deletes the table. It is no error if there is none.
func Remove() error { return nft.Delete(kernelTable) }
