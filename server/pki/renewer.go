// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// managedLeaf is a leaf that is kept fresh, with what its file held when it was last read.
type managedLeaf struct {
	Leaf
	pair *Pair
	used bool // Use has seen pair
}

// Ensure makes sure that the leaf's file holds a fitting certificate now, and keeps it so while Run runs. A second call
// with the same path replaces the first: that is how new names and addresses get in.
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

// refresh reads the leaf's file again, issues where needed, and tells those that embed a copy.
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

// Run keeps every ensured leaf fresh until ctx is done. It never fails: what cannot be renewed now (a full disk) stays
// in use and is tried again a minute later, which is a third of a year before it matters. report, when set, is called
// with the result of each check.
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
			p.log.Error("renewing certificates failed; those in use stay, and it is tried again in a minute", "error", err)
		}
		if report != nil {
			report(err)
		}
	}
}

// renew refreshes the leaves whose dates ask for it, or all of them.
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

// Info describes a certificate for status reports.
type Info struct {
	Name      string    `json:"name"`
	File      string    `json:"file"`
	Issuer    string    `json:"issuer,omitempty"`
	Authority bool      `json:"authority,omitempty"`
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
}

// Certificates lists the authorities and the leaves that are kept fresh.
func (p *PKI) Certificates() []Info {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []Info
	for _, s := range authorities {
		c := p.authority(s).cert()
		out = append(out, Info{Name: string(s), File: p.CAFile(s), Authority: true, NotBefore: c.NotBefore, NotAfter: c.NotAfter})
	}
	for _, m := range p.leaves {
		c := m.pair.Chain[0]
		out = append(out, Info{Name: m.Name, File: m.Path, Issuer: string(m.Signer), NotBefore: c.NotBefore, NotAfter: c.NotAfter})
	}
	return out
}
