// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coracle-k8s/coracle/internal/bundle"
	"github.com/coracle-k8s/coracle/internal/imports"
	"github.com/coracle-k8s/coracle/internal/slots"
)

// bundleFlags are those flags of an upgrade that concern bundles.
type bundleFlags struct {
	downgrade, oneWay bool
	keys              string // the file with the site's keys
}

func addBundleFlags(cmd *cobra.Command) *bundleFlags {
	f := &bundleFlags{keys: bundle.SiteKeysFile}
	cmd.Flags().BoolVar(&f.downgrade, "downgrade", false, "Take a bundle with a lower counter than this machine has had")
	cmd.Flags().BoolVar(&f.oneWay, "one-way", false, "Take a version after which the present one may lose running pods on a way back")
	return f
}

// isBundle reports whether a file is a bundle, or is meant to be one: programs are no tar.
func isBundle(file string) bool {
	if info, err := os.Stat(file); err != nil || !info.Mode().IsRegular() {
		return err == nil // bundle.OpenFile says what is wrong
	}
	f, err := os.Open(file)
	if err != nil {
		return false
	}
	defer f.Close()
	var magic [5]byte
	_, err = f.ReadAt(magic[:], 257)
	return err == nil && string(magic[:]) == "ustar" || strings.HasSuffix(file, ".bundle")
}

// allowUnsigned returns an error if this machine takes no program without a bundle. It takes one that it has had.
func (u *upgrade) allowUnsigned(f bundleFlags) error {
	trusted, err := bundle.Trust(f.keys)
	if err != nil || !trusted.RequireSigned {
		return forRoot(err)
	}
	if digest := filepath.Base(filepath.Dir(u.file)); u.file == u.v.ProgramOf(digest) &&
		(digest == u.state.Previous || digest == u.state.Current || exists(u.v.Slot(digest, slots.AcceptedFile))) {
		if have, err := slots.Digest(u.file); err == nil && have == digest {
			return nil
		}
	}
	return fmt.Errorf("%s is a program without a bundle, and this machine requires signatures (require-signed in %s). Nothing was changed: "+
		"give a signed bundle that has the program; coracle bundle make and coracle bundle sign make one", u.file, f.keys)
}

// unpack takes the program and what else a bundle brings into a folder of the version, once the bundle was verified. It
// sets the file and the digest. done is true when there is nothing to do.
func (u *upgrade) unpack(ctx context.Context, f bundleFlags, retry bool) (done bool, err error) {
	b, closeFile, err := bundle.OpenFile(u.file)
	if err != nil {
		return false, fmt.Errorf("%w. Nothing was changed", err)
	}
	defer closeFile()
	build, next, err := u.admit(ctx, b, f)
	if err != nil {
		return false, fmt.Errorf("%s is not accepted: %w. Nothing was changed", u.file, err)
	}
	digest := build.File.Digest.Encoded()
	if done, err := u.checkState(digest, retry); done || err != nil {
		return done, err
	}
	u.digest, u.file = digest, u.v.ProgramOf(digest)
	u.inv.Printf("copying coracle %s to %s\n", b.Index.Contents.Program.Version, u.v.Dir)
	defer func() {
		if err != nil {
			err = errors.Join(err, u.cleanUp())
		}
	}()
	program, err := b.Unpacked(*build)
	if err != nil {
		return false, err
	}
	if err := u.v.StageFrom(program, digest, build.File.Size, b.Index.ExtractSize()); err != nil {
		return false, err
	}
	// The version may be the current one soon, and then says more than the record, which a loss of power may keep
	// behind. Its content is never there without that.
	if err := next.Write(u.v.Slot(digest, slots.AcceptedFile)); err != nil {
		return false, err
	}
	return false, imports.ExtractSlot(ctx, b, u.v, digest)
}

// admit returns the build of a bundle for this machine, and which bundles the machine has taken once it has taken this
// one. The error says why it is not taken.
func (u *upgrade) admit(ctx context.Context, b *bundle.Bundle, f bundleFlags) (build *bundle.Build, next bundle.Accepted, err error) {
	had, err := bundle.AcceptedBy(u.v)
	if err != nil {
		return nil, next, err
	}
	trusted, err := bundle.Trust(f.keys)
	if err == nil {
		trusted, err = trusted.After(had)
	}
	if err != nil {
		return nil, next, forRoot(err)
	}
	verdict, err := b.Verify(trusted)
	if err != nil {
		return nil, next, err
	}
	own, err := askSettings(ctx, u.v.ProgramOf(u.state.Current), nil, nil) // this command may be another program's
	if err == nil {
		err = b.Index.Suits(bundle.Machine{Architecture: runtime.GOARCH, Version: own.Version, Level: levelOf(u.inv.tool.Paths),
			Counter: had.Counter, Downgrade: f.downgrade})
	}
	if err != nil {
		return nil, next, err
	}
	paths := u.inv.tool.Paths
	if err := imports.Of(paths, isAgent(paths)).CheckName(b.Index.Contents.Name); err != nil {
		return nil, next, err
	}
	p := b.Index.Contents.Program
	if !f.oneWay && own.Shim != 0 && (p.ContainerdDB != own.ContainerdDB || p.Shim != own.Shim) {
		return nil, next, fmt.Errorf("it has another form of containerd's records (%s, shims %d) than the version that runs (%s, shims %d), "+
			"which may lose running pods on a way back. To take it all the same: --one-way", p.ContainerdDB, p.Shim, own.ContainerdDB, own.Shim)
	}
	return p.Build(runtime.GOARCH), had.With(b.Index, trusted, verdict), nil
}
