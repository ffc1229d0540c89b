// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/ingress/check"
)

type ingressFlags struct {
	kubeconfigFlags
	namespace string
	all       bool
	files     []string
	defaults  string
	hostOwner string
	trusted   []string
	proxied   bool
}

func ingressCommand(a *App) *cobra.Command {
	return commandGroup(&cobra.Command{
		Use: "ingress", GroupID: groupUse, Short: "Find out which Ingresses would not be served as by ingress-nginx",
	}, ingressCheckCommand(a))
}

func ingressCheckCommand(a *App) *cobra.Command {
	f := ingressFlags{kubeconfigFlags: kubeconfigFlags{app: a}}
	cmd := &cobra.Command{
		Use: "check", Short: "List what of Ingresses is refused, broken, different or ignored", Args: noArgs,
		Long: `Judges Ingresses as a cluster with coracle would serve them, and says of each annotation and field what would be refused,
is broken with any controller, is different from ingress-nginx, or is ignored. It changes nothing.

It reads the cluster of --kubeconfig or KUBECONFIG, this machine's cluster, or ~/.kube/config. That may be a cluster without
coracle: Ingresses of ingress-nginx and Traefik count as served. The right to read Ingresses of one namespace suffices; what
else may not be read is named. With -f it reads files instead, and no cluster; with -f and -A or -n it judges the files'
objects as if they were applied to the cluster.

The exit code is 1 when something is refused, and 2 when the command line or a file is wrong or nothing could be read.`,
		Example: `  coracle ingress check -A
  helm template ./chart | coracle ingress check -f -
  coracle ingress check -A -f new.yaml -o json`,
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.BoolVarP(&f.all, "all-namespaces", "A", false, "Read the Ingresses of all namespaces")
	flags.StringVarP(&f.namespace, "namespace", "n", "", "Read the Ingresses of this namespace (that of the kubeconfig's context)")
	flags.StringArrayVarP(&f.files, "filename", "f", nil,
		"Judge the objects of this file or folder, or of standard input (-); may be repeated")
	form := addOutput(cmd, "text", "json")
	f.kubeconfigFlags.add(flags)
	flags.StringVar(&f.defaults, "defaults", "", "ConfigMap, as NAMESPACE/NAME, whose keys count as those of kube-system/ingress, such as "+
		"ingress-nginx/ingress-nginx-controller")
	flags.StringVar(&f.hostOwner, "ingress-host-owner", "path", "As coracle server's: path or namespace")
	flags.StringSliceVar(&f.trusted, "ingress-trusted-proxies", nil, "As coracle server's")
	flags.BoolVar(&f.proxied, "ingress-proxy-protocol", false, "As coracle server's")
	// Registering fails for flags that do not exist.
	_ = cmd.RegisterFlagCompletionFunc("ingress-host-owner",
		cobra.FixedCompletions([]string{"path", "namespace"}, cobra.ShellCompDirectiveNoFileComp))
	for _, name := range []string{"namespace", "defaults", "ingress-trusted-proxies"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
	_ = cmd.RegisterFlagCompletionFunc("context", f.completeContext)
	cmd.RunE = run(func(cmd *cobra.Command, _ []string) error {
		ctx, stop := untilInterrupted(cmd.Context())
		defer stop()
		r, err := f.checkIngresses(ctx)
		if err != nil {
			return usageError{cmd, err} // 1 is for what is refused
		}
		return failIf(r.Refused > 0, form.print(cmd.OutOrStdout(), r, func(w io.Writer) error { return printIngresses(w, r) }))
	})
	return cmd
}

// checkIngresses reads what the flags name, and judges it.
func (f *ingressFlags) checkIngresses(ctx context.Context) (check.Report, error) {
	o := check.Options{Objects: check.NewObjects(), Now: time.Now()}
	if err := f.options(&o); err != nil {
		return check.Report{}, err
	}
	namespace := f.namespace
	if len(f.files) == 0 || f.all || f.namespace != "" {
		k, err := f.load()
		if err != nil {
			return check.Report{}, err
		}
		config, err := k.ClientConfig()
		if err != nil {
			return check.Report{}, fmt.Errorf("reading the kubeconfig: %w", err)
		}
		config.QPS = -1 // the API server limits the rate of its clients itself
		if o.Client, err = kubernetes.NewForConfig(config); err != nil {
			return check.Report{}, fmt.Errorf("reading the kubeconfig: %w", err)
		}
		if namespace == "" {
			if namespace, _, err = k.Namespace(); err != nil {
				return check.Report{}, fmt.Errorf("reading the kubeconfig: %w", err)
			}
		}
		if !f.all {
			o.Namespace = namespace
		}
	}
	namespace = cmp.Or(namespace, "default")
	for _, name := range f.files {
		if err := readObjects(f.app.Stdin, o.Objects, name, namespace); err != nil {
			return check.Report{}, err
		}
	}
	return check.Run(ctx, o)
}

// options reads the flags that are settings of servers.
func (f *ingressFlags) options(o *check.Options) error {
	if f.all && f.namespace != "" {
		return errors.New("-A is for all namespaces, and -n names one: leave one of them out")
	}
	switch f.hostOwner {
	case "path":
	case "namespace":
		o.Rules.HostOwner = true
	default:
		return fmt.Errorf("--ingress-host-owner is %q: choose one of: path, namespace", f.hostOwner)
	}
	for _, text := range f.trusted {
		_, err := netip.ParsePrefix(text)
		if _, address := netip.ParseAddr(text); err != nil && address != nil {
			return fmt.Errorf("--ingress-trusted-proxies: %q is no network and no address", text)
		}
	}
	o.Rules.TrustedProxies, o.Rules.ProxyProtocol = f.trusted, f.proxied
	if f.defaults == "" {
		return nil
	}
	namespace, name, _ := strings.Cut(f.defaults, "/")
	if namespace == "" || name == "" || strings.Contains(name, "/") {
		return fmt.Errorf("--defaults is %q, which is no ConfigMap as NAMESPACE/NAME", f.defaults)
	}
	o.Defaults = types.NamespacedName{Namespace: namespace, Name: name}
	return nil
}

// readObjects reads a file, the files of a folder that end with .yaml, .yml or .json, or standard input for "-".
func readObjects(stdin io.Reader, to *check.Objects, name, namespace string) error {
	if name == "-" {
		if err := to.Read(stdin, namespace); err != nil {
			return fmt.Errorf("standard input: %w", err)
		}
		return nil
	}
	names := []string{name}
	if info, err := os.Stat(name); err == nil && info.IsDir() {
		entries, err := os.ReadDir(name)
		if err != nil {
			return err
		}
		names = nil
		for _, e := range entries {
			if !e.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(e.Name())) {
				names = append(names, filepath.Join(name, e.Name()))
			}
		}
	}
	for _, name := range names {
		file, err := os.Open(name) //nolint:gosec // the user's own file
		if err != nil {
			return err
		}
		err = to.Read(file, namespace)
		_ = file.Close() // it was only read
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// printIngresses prints a report as text: a line for each finding, and a summary.
func printIngresses(w io.Writer, r check.Report) error {
	if len(r.Findings) > 0 {
		var rows [][]string
		for _, f := range r.Findings {
			of := f.Namespace + "/" + f.Name
			if f.Kind != "Ingress" {
				of = f.Kind + " " + of
			}
			rows = append(rows, []string{of, string(f.Effect), f.Field, f.Message})
		}
		if err := printTable(w, []string{"INGRESS", "EFFECT", "IN", "WHAT"}, rows); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Ingresses checked: %d. Findings: %d refused, %d broken, %d different, %d ignored.\n", r.Ingresses, r.Refused, r.Broken,
		r.Different, r.Ignored)
	for _, note := range r.Notes {
		fmt.Fprintf(&b, "Note: %s.\n", printableLine(note))
	}
	if r.Refused > 0 {
		b.WriteString("What is refused is not served by coracle until it is changed; docs/ingress-nginx.md says what takes its place.\n")
	}
	return printText(w, b.String())
}
