// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// managedLeaf is a leaf that is renewed, with the content of its file when it was last read.
type managedLeaf struct {
	Leaf
	pair *Pair
	used bool // Use was called with pair
}

// Ensure makes sure that the leaf's file holds a fitting certificate. While Run runs, the certificate is renewed. A
// second call with the same path replaces the first: so names and addresses are changed.
func (p *PKI) Ensure(l Leaf) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := &managedLeaf{Leaf: l}
	if err := p.refresh(m); err != nil {
		return err
	}
	i := slices.IndexFunc(p.leaves, func(o *managedLeaf) bool { return o.Path == l.Path })
	if i < 0 {
		p.leaves = append(p.leaves, m)
	} else {
		p.leaves[i] = m
	}
	return nil
}

// refresh reads the leaf's file again, issues a certificate if necessary, and calls Use for a new one.
func (p *PKI) refresh(m *managedLeaf) error {
	pair, err := p.current(&m.Leaf)
	if err != nil {
		return err
	}
	if m.pair == nil || !m.pair.Chain[0].Equal(pair.Chain[0]) {
		m.pair, m.used = pair, false
	}
	if m.Use == nil || m.used {
		return nil
	}
	if err := m.Use(pair.Cert, pair.Key); err != nil {
		return fmt.Errorf("taking the new certificate of %s into use: %w", m.Name, err)
	}
	m.used = true
	return nil
}

// Run renews every ensured leaf until ctx is done. It never fails. A leaf that cannot be renewed (a full disk) stays in
// use, and the renewal is tried again a minute later: the leaf is still valid for a third of a year. report, when set,
// is called with the result of each check.
func (p *PKI) Run(ctx context.Context, report func(error)) {
	ticker := p.clock.NewTicker(checkEvery)
	defer ticker.Stop()
	reread := p.clock.Now().Add(rereadEvery)
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C():
		}
		all := !p.clock.Now().Before(reread)
		if all {
			reread = p.clock.Now().Add(rereadEvery)
		}
		err := p.renew(all)
		if err != nil {
			p.log.Error("renewing certificates failed; the present ones stay in use. Retrying in a minute", "error", err)
		}
		if report != nil {
			report(err)
		}
	}
}

// renew refreshes the leaves whose dates require it, or all leaves.
func (p *PKI) renew(all bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for _, m := range p.leaves {
		due := p.stale(p.authority(m.Signer), m.pair.Chain[0]) != "" || (m.Use != nil && !m.used)
		if all || due {
			errs = append(errs, p.refresh(m))
		}
	}
	return errors.Join(errs...)
}
