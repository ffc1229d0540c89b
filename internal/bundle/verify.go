// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"aead.dev/minisign"
)

// Verdict says by whom a bundle was signed.
type Verdict struct {
	// Release and Site are the numbers of the keys of each set that have signed.
	Release []string `json:"release,omitempty"`
	Site    []string `json:"site,omitempty"`
	// Keys is the set that replaces the release keys from now on; nil if these stay.
	Keys *NamedKeys `json:"keys,omitempty"`
}

// Verify checks the signatures against the keys that a machine trusts. It does not read the blobs: Blob and CheckBlobs
// do.
func (b *Bundle) Verify(t Trusted) (v Verdict, err error) {
	if len(b.signatures) == 0 {
		return v, errors.New("it is not signed")
	}
	if len(t.Release.Public)+len(t.Site.Public) == 0 {
		return v, errors.New("no key is trusted here: this build of coracle has no release keys, and there are no site keys (" + SiteKeysFile + ")")
	}
	v.Release, v.Site = b.signedBy(t.Release), b.signedBy(t.Site)
	release, site := t.Release.satisfied(v.Release), t.Site.satisfied(v.Site)
	switch {
	case t.RequireSite && !site:
		return v, fmt.Errorf("this machine requires %d signatures by site keys, and it has %d: %s", t.Site.Threshold, len(v.Site),
			b.unmet(t, v))
	case !release && !site:
		return v, errors.New(b.unmet(t, v))
	}
	return v, b.rotate(t, &v)
}

// rotate checks the set of keys that the bundle brings, and returns it in the verdict if it is another one. Only
// release keys replace release keys.
func (b *Bundle) rotate(t Trusted, v *Verdict) error {
	named := b.Index.Contents.Keys
	if named == nil || len(t.Release.Public) == 0 {
		return nil
	}
	next, err := named.parse()
	if err != nil {
		return fmt.Errorf("its new keys cannot be read: %w", err)
	}
	if next.equal(t.Release) {
		return nil
	}
	if !t.Release.satisfied(v.Release) {
		return fmt.Errorf("it brings other release keys, and only %d of the %d release keys that are needed for that have signed it",
			len(v.Release), t.Release.Threshold)
	}
	if by := b.signedBy(next); !next.satisfied(by) {
		return fmt.Errorf("it brings other release keys, and only %d of these have signed it, where %d are needed", len(by), next.Threshold)
	}
	v.Keys = next.Named()
	return nil
}

// satisfied says whether enough keys of the set have signed.
func (k Keys) satisfied(by []string) bool { return len(k.Public) > 0 && len(by) >= k.Threshold }

// signedBy returns the numbers of the keys of a set that have signed the bundle.
func (b *Bundle) signedBy(k Keys) (ids []string) {
	for _, key := range k.Public {
		for _, s := range b.signatures {
			if s.KeyID == key.ID() && minisign.Verify(key, b.raw, s.text) {
				ids = append(ids, keyID(s.KeyID))
			}
		}
	}
	return ids
}

// unmet says what the signatures lack.
func (b *Bundle) unmet(t Trusted, v Verdict) string {
	known := map[uint64]minisign.PublicKey{}
	for _, key := range slices.Concat(t.Release.Public, t.Site.Public) {
		known[key.ID()] = key
	}
	var unknown, wrong []string
	for _, s := range b.signatures {
		key, ok := known[s.KeyID]
		switch {
		case !ok:
			unknown = append(unknown, keyID(s.KeyID))
		case !minisign.Verify(key, b.raw, s.text):
			wrong = append(wrong, keyID(s.KeyID))
		}
	}
	switch {
	case len(wrong) > 0:
		return fmt.Sprintf("its index was changed after it was signed: the signature by the key %s is wrong", strings.Join(wrong, ", "))
	case len(v.Release)+len(v.Site) == 0:
		return fmt.Sprintf("it is signed by keys that are not trusted here: %s", strings.Join(unknown, ", "))
	}
	var needs []string
	if len(t.Release.Public) > 0 {
		needs = append(needs, fmt.Sprintf("%d of the %d release keys have signed it, and %d have to", len(v.Release), len(t.Release.Public),
			t.Release.Threshold))
	}
	if len(t.Site.Public) > 0 {
		needs = append(needs, fmt.Sprintf("%d of the %d site keys have signed it, and %d have to", len(v.Site), len(t.Site.Public),
			t.Site.Threshold))
	}
	return "too few keys have signed it: " + strings.Join(needs, "; or ")
}

// CheckBlobs reads all blobs and unpacks the programs. It returns an error for the first content that does not have the
// digest that the index says.
func (b *Bundle) CheckBlobs(ctx context.Context) error {
	for _, blob := range b.Index.Contents.Blobs {
		r, err := b.Blob(blob.Digest)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, withContext{ctx, r}); err != nil {
			return err
		}
	}
	if b.Index.Contents.Program == nil {
		return nil
	}
	for _, build := range b.Index.Contents.Program.Builds {
		r, err := b.Unpacked(build)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, withContext{ctx, r}); err != nil {
			return err
		}
	}
	return nil
}

// Unpacked returns a reader of a program. Its last call to Read returns an error, in the place of io.EOF, if the packed
// or the unpacked content does not have its digest. It never returns more bytes than the index says.
func (b *Bundle) Unpacked(build Build) (io.Reader, error) {
	packed, err := b.Blob(build.Packed.Digest)
	if err != nil {
		return nil, err
	}
	z, err := gzip.NewReader(packed)
	if err != nil {
		return nil, fmt.Errorf("unpacking the program for %s: %w", build.Architecture, err)
	}
	return checked(z, build.File, "the program for "+build.Architecture+" is not what the index says"), nil
}

// Machine is where a bundle's program is to run.
type Machine struct {
	// Architecture is Go's name of the processor architecture.
	Architecture string
	// Version is the version that runs now, Level the cluster's level; empty and 0 if there is none.
	Version string
	Level   int
	// Counter is the highest counter that was committed. Downgrade allows a bundle with a lower one.
	Counter   int64
	Downgrade bool
}

// Suits returns an error that says why a machine cannot take the bundle's program.
func (x *Index) Suits(m Machine) error {
	c, p := &x.Contents, x.Contents.Program
	switch {
	case p == nil:
		return errors.New("it has no program")
	case p.Build(m.Architecture) == nil:
		return fmt.Errorf("it has no program for this processor (%s), only for: %s", m.Architecture, strings.Join(p.Architectures(), ", "))
	case c.Counter < m.Counter && !m.Downgrade:
		return fmt.Errorf("it is older than what this machine has had: its counter is %d, and that of the newest was %d. To go back on purpose: "+
			"--downgrade", c.Counter, m.Counter)
	case p.From != "" && m.Version != "" && olderVersion(m.Version, p.From):
		return fmt.Errorf("this machine runs %s, which is too old for it: go to %s first", m.Version, p.From)
	case m.Level != 0 && m.Level < p.OldestLevel:
		return fmt.Errorf("the cluster has level %d, which is too old for it: it knows the levels %d to %d. Go to a version between first",
			m.Level, p.OldestLevel, p.Level)
	case m.Level > p.Level:
		return fmt.Errorf("the cluster has level %d, which is too new for it: it knows the levels %d to %d", m.Level, p.OldestLevel, p.Level)
	}
	return nil
}

// Build returns the build for a processor, nil if there is none.
func (p *Program) Build(architecture string) *Build {
	for i := range p.Builds {
		if p.Builds[i].Architecture == architecture {
			return &p.Builds[i]
		}
	}
	return nil
}

// Architectures lists the processors for which there is a build.
func (p *Program) Architectures() (names []string) {
	for _, b := range p.Builds {
		names = append(names, b.Architecture)
	}
	return names
}
