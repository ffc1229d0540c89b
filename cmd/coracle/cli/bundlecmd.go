// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/coracle-k8s/coracle/internal/bundle"
	"github.com/coracle-k8s/coracle/internal/slots"
)

func bundleCommand(a *App) *cobra.Command {
	return commandGroup(&cobra.Command{
		Use: "bundle", GroupID: groupUse, Short: "Make, check, sign and import one file for machines without a network",
		Long: `A bundle is one file with coracle for each processor, images, charts and manifests, and with signatures. It is made from
files alone, without a network. docs/bundle.md says what is in it, how keys are made and replaced, and how to check a bundle
with minisign(1) before coracle runs.`,
	}, bundleMakeCommand(a), bundleShowCommand(), bundleVerifyCommand(a), bundleSignCommand(a), bundleImportCommand(a))
}

func bundleMakeCommand(a *App) *cobra.Command {
	var o bundle.Options
	var keys string
	cmd := &cobra.Command{
		Use: "make --out FILE --name NAME --counter N", Short: "Make a bundle from files", Args: noArgs,
		Long: `Makes a bundle from files alone. The same files, name and counter always give the same bytes. Nothing is signed yet:
coracle bundle sign does that.

Programs have to be builds of the version that this coracle has. The folder of the bundle needs room for its contents twice.`,
		RunE: run(func(cmd *cobra.Command, _ []string) error {
			switch {
			case o.Out == "":
				return usageError{cmd, errors.New("--out says which file to write")}
			case o.Name == "":
				return usageError{cmd, errors.New("--name says what the bundle is called, such as spring-2027")}
			case o.Counter < 1:
				return usageError{cmd, errors.New("--counter is 1 or more, and larger than that of the bundle before: machines refuse a smaller one")}
			}
			if keys != "" {
				set, err := bundle.ReadKeys(keys)
				if err != nil {
					return err
				}
				o.Keys = set.Named()
			}
			o.Facts, o.Marks = bundle.FactsOfThis()
			ctx, stop := untilInterrupted(cmd.Context())
			defer stop()
			x, size, err := bundle.Make(ctx, o)
			if err != nil {
				return err
			}
			cmd.Printf("%s: %s, %s. It is not signed yet: coracle bundle sign --key FILE %s\n", o.Out, bundleSummary(x), bytesText(size), o.Out)
			if size >= bundle.FATLimit {
				a.warn("%s has 4 GiB or more, and FAT32, which most sticks have, takes no such file. Format the stick with ext4, or make two bundles",
					o.Out)
			}
			return nil
		}),
	}
	f := cmd.Flags()
	f.StringVar(&o.Out, "out", "", "File to write")
	f.StringVar(&o.Name, "name", "", "Name of the bundle: letters, digits and . _ + -")
	f.Int64Var(&o.Counter, "counter", 0, "Number that is larger than that of the bundle before")
	f.StringArrayVar(&o.Programs, "program", nil, "Program of coracle; once for each processor")
	f.StringVar(&o.From, "from", "", "Oldest version that the program can replace, such as v1.37.0+coracle1 (default: any with a level that it knows)")
	f.StringArrayVar(&o.Images, "image", nil, "Archive of images, as docker save and ctr images export write it; may be repeated")
	f.StringArrayVar(&o.Charts, "chart", nil, "Helm chart, packed; may be repeated")
	f.StringArrayVar(&o.Manifests, "manifest", nil, "Manifest of Kubernetes objects; may be repeated")
	f.StringVar(&o.SBOM, "sbom", "", "List of the program's parts in the form of CycloneDX")
	f.StringVar(&keys, "keys", "", "File with public keys that replace the release keys, in the form of "+bundle.SiteKeysFile)
	return cmd
}

// bundleArg returns an error unless the only argument is a file.
func bundleArg(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usageError{cmd, errors.New("name one bundle")}
	}
	return nil
}

func bundleShowCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "show BUNDLE", Short: "Show what is in a bundle, without a check of its signatures", Args: bundleArg,
	}
	form := addOutput(cmd, "text", "json")
	cmd.RunE = run(func(cmd *cobra.Command, args []string) error {
		b, done, err := bundle.OpenFile(args[0])
		if err != nil {
			return err
		}
		defer done()
		return form.print(cmd.OutOrStdout(), b.Index, func(w io.Writer) error { return printText(w, bundleText(b)) })
	})
	return cmd
}

func bundleVerifyCommand(a *App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "verify BUNDLE", Short: "Check the signatures and the whole content of a bundle", Args: bundleArg,
		Long: `Checks that enough keys have signed the bundle that are trusted here, and that each byte of it is what was signed. Trusted
are the release keys that this coracle was built with, and the keys in ` + bundle.SiteKeysFile + `. No clock and no network is
asked. The exit code is 0 only if the bundle is accepted.`,
	}
	keys := addTrustedKeys(cmd)
	form := addOutput(cmd, "text", "json")
	cmd.RunE = run(func(cmd *cobra.Command, args []string) error {
		trusted, err := bundle.Trust(*keys)
		if v, _, ok := slots.Own(); ok && err == nil {
			trusted, err = trustedAfter(trusted, v)
		}
		if err != nil {
			return forRoot(err)
		}
		if len(trusted.Release.Public) == 0 {
			a.warn("this build has no release keys: it trusts the keys in %s alone", *keys)
		}
		b, done, err := bundle.OpenFile(args[0])
		if err != nil {
			return err
		}
		defer done()
		ctx, stop := untilInterrupted(cmd.Context())
		defer stop()
		v, err := b.Verify(trusted)
		if err == nil {
			err = b.CheckBlobs(ctx)
		}
		if err != nil {
			return fmt.Errorf("%s is not accepted: %w", args[0], err)
		}
		return form.print(cmd.OutOrStdout(), v, func(w io.Writer) error { return printText(w, verdictText(b, v)) })
	})
	return cmd
}

func bundleSignCommand(a *App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "sign --key FILE BUNDLE", Short: "Add a signature to a bundle", Args: bundleArg,
		Long: `Signs a bundle with a private key of minisign(1): minisign -G makes a pair of keys. Several keys sign one after the other.
The whole bundle is checked and written once more beside the old one, which it then replaces: an interruption leaves the old one.
The password of the key is asked for at the terminal. Without a terminal it is the first line of the standard input.`,
	}
	file := cmd.Flags().String("key", "", "Private key of minisign")
	cmd.RunE = run(func(cmd *cobra.Command, args []string) error {
		if *file == "" {
			return usageError{cmd, errors.New("--key says with which private key to sign; minisign -G makes one")}
		}
		key, err := bundle.ReadPrivateKey(*file, func() (string, error) { return a.password(*file) })
		if err != nil {
			return err
		}
		ctx, stop := untilInterrupted(cmd.Context())
		defer stop()
		id, err := bundle.Sign(ctx, args[0], key)
		if err != nil {
			return fmt.Errorf("nothing was signed: %w", err)
		}
		cmd.Printf("%s is signed with the key %s.\n", args[0], id)
		return nil
	})
	return cmd
}

// password asks for the password of a key.
func (a *App) password(file string) (string, error) {
	if f, ok := a.Stdin.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		fmt.Fprintf(a.Stderr, "Password of %s: ", file)
		text, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(a.Stderr)
		return string(text), err
	}
	text, err := bufio.NewReader(a.Stdin).ReadString('\n')
	if err != nil && (text == "" || !errors.Is(err, io.EOF)) {
		return "", errors.New("there is no terminal to ask at, and no line in the standard input")
	}
	return strings.TrimRight(text, "\r\n"), nil
}

// bundleSummary says in one line what is in a bundle.
func bundleSummary(x *bundle.Index) string {
	c := &x.Contents
	var parts []string
	if c.Program != nil {
		parts = append(parts, fmt.Sprintf("coracle %s for %s", c.Program.Version, strings.Join(c.Program.Architectures(), ", ")))
	}
	for _, kind := range []struct {
		name string
		n    int
	}{{"image", len(x.Manifests)}, {"chart", len(c.Charts)}, {"manifest", len(c.Manifests)}} {
		switch {
		case kind.n == 1:
			parts = append(parts, "1 "+kind.name)
		case kind.n > 1:
			parts = append(parts, fmt.Sprintf("%d %ss", kind.n, kind.name))
		}
	}
	return strings.Join(parts, ", ")
}

func bundleText(b *bundle.Bundle) string {
	var t strings.Builder
	c := &b.Index.Contents
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&t, "%-12s%s\n", name, printableLine(fmt.Sprintf(format, args...)))
	}
	row("bundle", "%s, counter %d, %s", c.Name, c.Counter, bytesText(b.Size()))
	if p := c.Program; p != nil {
		row("program", "coracle %s (Kubernetes %s, levels %d to %d, containerd's database %s, shims %d)", p.Version, p.Kubernetes, p.OldestLevel,
			p.Level, p.ContainerdDB, p.Shim)
		if p.From != "" {
			row("", "replaces %s and later ones", p.From)
		}
		for _, build := range p.Builds {
			row("", "%s: %s, %s packed, SHA-256 %s", build.Architecture, bytesText(build.File.Size), bytesText(build.Packed.Size),
				build.File.Digest.Encoded())
		}
	}
	for i, name := range b.Index.Images() {
		row("image", "%s %s", name, b.Index.Manifests[i].Digest)
	}
	for _, f := range c.Charts {
		row("chart", "%s, %s", f.Name, bytesText(f.Size))
	}
	for _, f := range c.Manifests {
		row("manifest", "%s, %s", f.Name, bytesText(f.Size))
	}
	if c.SBOM != nil {
		row("SBOM", "%s, %s", c.SBOM.Name, bytesText(c.SBOM.Size))
	}
	if c.Keys != nil {
		row("new keys", "%d of these have to sign from now on: %s", c.Keys.Threshold, strings.Join(c.Keys.Keys, " "))
	}
	signers := "none"
	if ids := b.Signers(); len(ids) > 0 {
		signers = strings.Join(ids, ", ") + " (not checked: coracle bundle verify does that)"
	}
	row("signatures", "%s", signers)
	return t.String()
}

func verdictText(b *bundle.Bundle, v bundle.Verdict) string {
	var t strings.Builder
	if len(v.Release) > 0 {
		fmt.Fprintf(&t, "Signed by release keys: %s\n", strings.Join(v.Release, ", "))
	}
	if len(v.Site) > 0 {
		fmt.Fprintf(&t, "Signed by site keys: %s\n", strings.Join(v.Site, ", "))
	}
	if v.Keys != nil {
		fmt.Fprintf(&t, "It replaces the release keys: %d of %d new ones have to sign from then on.\n", v.Keys.Threshold, len(v.Keys.Keys))
	}
	fmt.Fprintf(&t, "Its %d blobs are whole. The bundle is accepted.\n", len(b.Index.Contents.Blobs))
	return t.String()
}
