// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/coracle-k8s/coracle/console"
)

type kubeconfigFlags struct {
	app                 *App
	kubeconfig, context string
}

type consoleFlags struct {
	kubeconfigFlags
	port             int
	noOpen, readOnly bool
	idle             time.Duration
}

func consoleCommand(a *App) *cobra.Command {
	f := consoleFlags{kubeconfigFlags: kubeconfigFlags{app: a}}
	cmd := &cobra.Command{
		Use: "console", GroupID: groupUse, Short: "See and change the cluster in a browser", Args: noArgs,
		Long: `Serves the web console on a port of 127.0.0.1, with the credentials of a kubeconfig, and opens it in the browser.

It takes the kubeconfig of --kubeconfig or KUBECONFIG, this machine's cluster, or ~/.kube/config, as coracle kubectl
does. Others on this machine can reach the port but cannot use it: the browser logs in by a link that works once,
for a minute. On a machine without a browser it prints how to reach the console from another one by ssh.`,
	}
	f.kubeconfigFlags.add(cmd.PersistentFlags())
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.IntVar(&f.port, "port", 0, "Port of 127.0.0.1 to serve on (a free one)")
	flags.BoolVar(&f.noOpen, "no-open", false, "Print the link instead of opening the browser")
	flags.BoolVar(&f.readOnly, "read-only", false, "Refuse all changes, even those that the user may make")
	flags.DurationVar(&f.idle, "idle", 12*time.Hour, "End after no page was open for this time; 0: never")
	_ = cmd.RegisterFlagCompletionFunc("context", f.completeContext) // fails for a flag that does not exist
	cmd.RunE = run(func(cmd *cobra.Command, _ []string) error {
		switch {
		case f.port < 0 || f.port > 65535:
			return usageError{cmd, fmt.Errorf("--port: %d is not a port; one is between 1 and 65535", f.port)}
		case f.idle < 0:
			return usageError{cmd, fmt.Errorf("--idle: %s is less than nothing", f.idle)}
		}
		return f.runConsole(cmd.Context())
	})
	cmd.AddCommand(consoleTokenCommand(&f.kubeconfigFlags))
	return cmd
}

func (f *kubeconfigFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.kubeconfig, "kubeconfig", "", "Kubeconfig to use")
	flags.StringVar(&f.context, "context", "", "Context of the kubeconfig to use (its current one)")
}

// load returns the kubeconfig that the flags or the environment select, or else this machine's.
func (f *kubeconfigFlags) load() (clientcmd.ClientConfig, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = f.kubeconfig
	if f.kubeconfig == "" {
		env, err := client{name: "console"}.environ(f.app.Environ, f.app.tool(), []string{"console"})
		if err != nil {
			return nil, err
		}
		if path := getenv(env, "KUBECONFIG"); path != "" {
			rules.Precedence = filepath.SplitList(path)
		}
	}
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: f.context}), nil
}

func (f *kubeconfigFlags) completeContext(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	var raw api.Config
	k, err := f.load()
	if err == nil {
		raw, _ = k.RawConfig() // without it there is nothing to complete
	}
	return slices.Collect(maps.Keys(raw.Contexts)), cobra.ShellCompDirectiveNoFileComp
}

func (f *consoleFlags) runConsole(ctx context.Context) error {
	kubeconfig, err := f.load()
	if err != nil {
		return err
	}
	raw, err := kubeconfig.RawConfig()
	if err != nil {
		return fmt.Errorf("reading the kubeconfig: %w", err)
	}
	current := cmp.Or(f.context, raw.CurrentContext)
	if current == "" {
		return errors.New("the kubeconfig names no current context: name one of its contexts by --context, or another file by --kubeconfig")
	}
	if raw.Contexts[current] == nil {
		return fmt.Errorf("the kubeconfig has no context %q: name one of its contexts by --context", current)
	}
	first, err := openContext(kubeconfig)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := f.app.probeConsole(ctx, first.Config, current, loginTimeout); err != nil {
		if ctx.Err() != nil {
			return nil // the user interrupted it
		}
		return err
	}
	l, err := console.ListenLoopback(ctx, console.LoopbackOptions{
		Contexts: contextsOf(ctx, kubeconfig, &raw, current, first), Port: f.port, ReadOnly: f.readOnly, Idle: f.idle,
		Program: "/proc/self/exe",
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(f.app.Stdout, "The console of context %s (%s)\n", current, serverOf(&raw, current))
	var beside sync.WaitGroup
	beside.Go(func() { f.letBrowserIn(ctx, l) })
	err = l.Serve(ctx)
	stop()
	beside.Wait()
	if errors.Is(err, console.ErrIdle) {
		fmt.Fprintf(f.app.Stdout, "No page was open for %s: the console has ended.\n", f.idle)
		return nil
	}
	return err
}

// openContext reads the credentials of a kubeconfig's chosen context. It runs no login program.
func openContext(kubeconfig clientcmd.ClientConfig) (console.Context, error) {
	config, err := kubeconfig.ClientConfig()
	if err != nil {
		return console.Context{}, fmt.Errorf("reading the kubeconfig: %w", err)
	}
	config.QPS = -1 // the API server limits the rate of its clients itself
	if config.ExecProvider != nil {
		config.ExecProvider.StdinUnavailable, config.ExecProvider.StdinUnavailableMessage = true, noStdin
	}
	namespace, _, err := kubeconfig.Namespace()
	if err != nil {
		return console.Context{}, fmt.Errorf("reading the kubeconfig: %w", err)
	}
	return console.Context{Config: config, Namespace: namespace}, nil
}

// contextsOf returns the contexts of a kubeconfig, of which the current one is open already.
func contextsOf(
	ctx context.Context, kubeconfig clientcmd.ClientConfig, raw *api.Config, current string, first console.Context,
) console.Contexts {
	names := slices.DeleteFunc(slices.Sorted(maps.Keys(raw.Contexts)), func(name string) bool { return name == "" })
	return console.Contexts{
		Names: names, Current: current,
		Open: func(name string) (console.Context, error) {
			if name == current {
				return first, nil
			}
			return openContext(clientcmd.NewNonInteractiveClientConfig(*raw, name, &clientcmd.ConfigOverrides{}, kubeconfig.ConfigAccess()))
		},
		Check: func(name string, c console.Context) error {
			err := askForConsole(ctx, c.Config, name, probeTimeout)
			if _, silent := errors.AsType[unresponsiveCluster](err); silent {
				return fmt.Errorf("the cluster of context %s does not answer: %w", name, err)
			}
			return err
		},
	}
}

func serverOf(c *api.Config, context string) string {
	if cluster := c.Clusters[c.Contexts[context].Cluster]; cluster != nil {
		return cluster.Server
	}
	return "no address"
}

// letBrowserIn opens the browser, or prints how to reach the console. It prints a new link each time the user presses
// Enter.
func (f *consoleFlags) letBrowserIn(ctx context.Context, l *console.Loopback) {
	a := f.app
	opened := false
	if !f.noOpen {
		remove, err := openBrowser(ctx, a.Environ, l.Link())
		opened = err == nil
		if err != nil {
			fmt.Fprintf(a.Stdout, "No browser was opened: %v\n", err)
		}
		defer remove()
	}
	if !opened {
		a.printLink(l)
	}
	fmt.Fprintln(a.Stdout, "Enter makes a new link, Ctrl-C ends the console.")
	lines := make(chan struct{})
	go func() { // ends with the process: a read from a terminal cannot be cancelled
		for in := bufio.NewScanner(a.Stdin); in.Scan(); {
			select {
			case lines <- struct{}{}:
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case <-lines:
			a.printLink(l)
		}
	}
}

// printLink prints a new link to the user's terminal, with the command to reach it from another machine.
func (a *App) printLink(l *console.Loopback) {
	fmt.Fprintf(a.Stdout, "\n  %s\n\nIt works once, within a minute.", l.Link())
	if getenv(a.Environ, "SSH_CONNECTION") != "" || getenv(a.Environ, "DISPLAY")+getenv(a.Environ, "WAYLAND_DISPLAY") == "" {
		name, err := os.Hostname()
		if err != nil {
			name = "this-machine"
		}
		fmt.Fprintf(a.Stdout, " In a browser on another machine, first: ssh -L %d:127.0.0.1:%d %s", l.Port(), l.Port(), name)
	}
	fmt.Fprintln(a.Stdout)
}

// openBrowser opens a link in the browser of the user's desktop. It passes the link in a file that only the user can
// read, because the browser's command line is readable by all users. The caller calls remove to remove the file.
func openBrowser(ctx context.Context, environ []string, link string) (remove func(), err error) {
	remove = func() {}
	if getenv(environ, "DISPLAY")+getenv(environ, "WAYLAND_DISPLAY") == "" {
		return remove, errors.New("there is no desktop")
	}
	if os.Geteuid() == 0 {
		return remove, errors.New("root has no browser; give this user a kubeconfig, or open the link")
	}
	opener, err := exec.LookPath("xdg-open")
	if err != nil {
		return remove, errors.New("xdg-open is not installed")
	}
	// MkdirTemp makes the folder with mode 0700, in the system's temporary folder when the user has no runtime folder.
	dir, err := os.MkdirTemp(getenv(environ, "XDG_RUNTIME_DIR"), "coracle-console-")
	if err != nil {
		return remove, fmt.Errorf("making a file for it: %w", err)
	}
	remove = func() { _ = os.RemoveAll(dir) } // an error is harmless: the code in the link is good for a minute only
	page := filepath.Join(dir, "console.html")
	content := `<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="0;url=` + link + `"><title>coracle</title>`
	if err := os.WriteFile(page, []byte(content), 0o600); err != nil {
		return remove, fmt.Errorf("making a file for it: %w", err)
	}
	cmd := exec.CommandContext(context.WithoutCancel(ctx), opener, page) //nolint:gosec // the user's own program
	cmd.Env = environ
	if err := cmd.Start(); err != nil {
		return remove, fmt.Errorf("starting xdg-open: %w", err)
	}
	go func() { _ = cmd.Wait() }() // nothing waits for its end: xdg-open may be the browser itself
	return remove, nil
}
