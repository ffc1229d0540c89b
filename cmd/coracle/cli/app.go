// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/preflight"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/version"
	"github.com/coracle-k8s/coracle/joining/token"
)

// App holds what the commands need from outside the package.
type App struct {
	// RunServer runs a server, and the node on the same machine, until the context ends.
	RunServer func(ctx context.Context, c *config.Server, p *Process) error
	// RunAgent runs a node of a cluster whose servers are other machines.
	RunAgent func(ctx context.Context, c *config.Agent, p *Process) error
	// CheckServerArgs and CheckKubeletArgs find mistakes in the arguments for upstream's components without starting
	// anything. The error joins one error for each mistake.
	CheckServerArgs  func(c *config.Server) error
	CheckKubeletArgs func(args []string) error
	// Emulate makes this process the Kubernetes of a level that the program knows.
	Emulate func(level int) error
	// Become makes this process kubectl, ctr, helm or the cleaning of the host, with environment variables. It does not
	// return.
	Become func(name string, args, env []string)
	// Libraries returns the versions of the libraries that coracle is built with, by name.
	Libraries func() map[string]string
	// Encryption manages the store's keys.
	Encryption Encryption
	// SnapshotFiles returns the names of the files that a snapshot holds besides the store. The optional ones may be
	// missing.
	SnapshotFiles func() (required, optional []string)
	// TokenFiles returns the names of the files that hold the tokens once they were replaced.
	TokenFiles func() []string
	// RotateToken replaces one of the cluster's tokens through the store of the server whose folder is serverDir. It
	// returns the new token, and the servers that have not taken it over within some seconds.
	RotateToken func(ctx context.Context, store *clientv3.Client, serverDir string, r token.RotationRequest) (next token.Token,
		behind []string, err error)
	// RotateGossipKey replaces the gossip key. The function members returns the members that this machine's server
	// knows. It calls progress with each step.
	RotateGossipKey func(ctx context.Context, client kubernetes.Interface, members func(context.Context) ([]status.Member, error),
		progress func(string)) error
	// RevokeNode shuts out a node whose machine was stolen.
	RevokeNode func(ctx context.Context, r RevokeRequest) error
	// Restart replaces the program by a new start of itself, with the original arguments and environment. It returns
	// only when that fails.
	Restart func() error
	// CheckVIPs checks whether the cluster can have these virtual addresses (separated by commas). It probes the LAN,
	// on the interface that is named by on or else on one that fits, for machines that have them. It returns the
	// addresses in canonical form.
	CheckVIPs func(ctx context.Context, client kubernetes.Interface, addresses, on string) (string, error)
	// CheckHost returns the machine that coracle check examines.
	CheckHost func() preflight.Host

	Stdin   io.Reader
	Stdout  io.Writer
	Stderr  io.Writer
	Environ []string
	Host    config.Host
}

// Main runs the command that args select and returns the exit code. args[0] is the name of the program.
func (a *App) Main(ctx context.Context, args []string) int {
	root := a.root()
	rest := args[1:]
	if name := filepath.Base(args[0]); embeddedByName[name] {
		rest = append([]string{name}, rest...)
	}
	if err := singleDash(root, rest); err != nil {
		return a.report(err)
	}
	root.SetArgs(rest)
	err := root.ExecuteContext(ctx)
	if errors.Is(err, ErrRestart) {
		err = runError{fmt.Errorf("%w, and could not; the service manager starts it again: %w", err, a.Restart())}
	}
	return a.report(err)
}

func (a *App) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "coracle",
		Short: "Kubernetes in one binary",
		Long: `Coracle is Kubernetes in one binary that needs nothing else.

Start a cluster with "coracle server", check it with "coracle status", use it with "coracle kubectl". Further machines
join it with "coracle agent".`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		Version:           version.Get().Coracle,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		Args:              subcommand,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(a.Stdin)
	root.SetOut(a.Stdout)
	root.SetErr(a.Stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError{cmd, config.ExplainFlagError(err, cmd.Flags())}
	})
	root.AddGroup(&cobra.Group{ID: groupRun, Title: "Run a cluster:"}, &cobra.Group{ID: groupUse, Title: "Use and maintain it:"})
	// --help is enough; without a group, the help would have an empty group
	root.SetHelpCommand(&cobra.Command{Use: "no-help", Hidden: true, GroupID: groupUse})
	root.AddCommand(
		serverCommand(a), agentCommand(a),
		checkCommand(a), statusCommand(a), consoleCommand(a),
		clientCommand(a, kubectl()), clientCommand(a, helm()), ctrCommand(a), crictlCommand(a),
		kubeconfigCommand(a), tokenCommand(a), encryptCommand(a), certificateCommand(a), gossipCommand(a), vipCommand(a),
		backendCommand(a), ingressCommand(a), snapshotCommand(a), storeCommand(a), memberCommand(a), nodeCommand(a), leaveCommand(a),
		upgradeCommand(a), bundleCommand(a),
		debugCommand(a), cleanupCommand(a), versionCommand(a), completionCommand(),
	)
	return root
}

// commandGroup makes cmd a command that only has subcommands.
func commandGroup(cmd *cobra.Command, others ...*cobra.Command) *cobra.Command {
	cmd.Args, cmd.RunE = subcommand, func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd.AddCommand(others...)
	return cmd
}

// Groups of commands in the help.
const (
	groupRun = "run"
	groupUse = "use"
)

func commandNames(cmd *cobra.Command) []string {
	var out []string
	for _, c := range cmd.Commands() {
		if !c.Hidden {
			out = append(out, c.Name())
		}
	}
	return out
}

// usageError wraps an error of the command line. Its exit code is 2.
type usageError struct {
	cmd *cobra.Command
	err error
}

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

// runError wraps an error of a command that was understood but failed. Its exit code is 1.
type runError struct{ err error }

func (e runError) Error() string { return e.err.Error() }
func (e runError) Unwrap() error { return e.err }

// errNoMessage is the error of a command that has already printed everything about its failure.
var errNoMessage = runError{errors.New("")}

// failIf returns the error of printing, or errNoMessage if the printed text says that something is wrong.
func failIf(wrong bool, printing error) error {
	if printing == nil && wrong {
		return errNoMessage
	}
	return printing
}

// run marks the errors of a command's work, to distinguish them from errors of the command line.
func run(f func(cmd *cobra.Command, args []string) error) func(cmd *cobra.Command, args []string) error {
	return func(cmd *cobra.Command, args []string) error {
		err := f(cmd, args)
		var usage usageError
		var problems config.Problems
		if err == nil || errors.As(err, &usage) || errors.As(err, &problems) {
			return err
		}
		return runError{err}
	}
}

// report prints an error and returns the exit code.
func (a *App) report(err error) int {
	var failed runError
	var member stillMember
	var refused refusedError
	var problems config.Problems
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &member):
		fmt.Fprintln(a.Stderr, "coracle: "+printableText(member.Error()))
		return exitStillMember
	case errors.As(err, &refused):
		fmt.Fprintln(a.Stderr, "coracle: "+printableText(refused.Error()))
		return exitRefused
	case errors.As(err, &problems) && !errors.As(err, &usage):
		fmt.Fprintln(a.Stderr, "coracle: the configuration is wrong, nothing was started:")
		for _, p := range problems {
			fmt.Fprintln(a.Stderr, "  "+p)
		}
		return 2
	case errors.As(err, &failed):
		if text := failed.Error(); text != "" {
			fmt.Fprintln(a.Stderr, "coracle: "+printableText(text))
		}
		return 1
	}
	fmt.Fprintln(a.Stderr, "coracle: "+printableText(err.Error()))
	name := "coracle"
	if errors.As(err, &usage) && usage.cmd != nil {
		name = usage.cmd.CommandPath()
	}
	fmt.Fprintf(a.Stderr, "See: %s --help\n", name)
	return 2
}

// singleDash returns an error for a long flag that was written with one dash, which would be read as several short
// ones.
func singleDash(root *cobra.Command, args []string) error {
	cmd, _, err := root.Find(args)
	if err != nil || cmd.DisableFlagParsing {
		return nil // the parser reports what is wrong
	}
	for _, arg := range args {
		if arg == "--" {
			break
		}
		name, isFlag := strings.CutPrefix(arg, "-")
		name, _, _ = strings.Cut(name, "=")
		if isFlag && len(name) > 1 && name[0] != '-' && cmd.Flags().Lookup(name) != nil {
			return usageError{cmd, fmt.Errorf("unknown flag -%s; did you mean --%s?", name, name)}
		}
	}
	return nil
}

// noArgs returns an error for arguments that are not flags.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{cmd, fmt.Errorf("unexpected argument %q", args[0])}
	}
	return nil
}

// subcommand returns an error for unknown names of subcommands. It is for commands that only have subcommands.
func subcommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	msg := fmt.Sprintf("unknown command %q", args[0])
	if best := config.Nearest(args[0], commandNames(cmd)); best != "" {
		msg += "; did you mean: " + cmd.CommandPath() + " " + best + "?"
	}
	return usageError{cmd, errors.New(msg)}
}

// sources returns the sources of a command's settings.
func (a *App) sources(f *config.Flags) config.Sources {
	return config.Sources{Flags: f, Environ: a.Environ, Host: a.Host}
}

// warn prints a line to standard error that is no error.
func (a *App) warn(format string, args ...any) {
	fmt.Fprintf(a.Stderr, "coracle: "+format+"\n", args...)
}

// untilInterrupted returns a context that ends at SIGINT or SIGTERM.
func untilInterrupted(ctx context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
}

// isRoot says whether this process runs as root.
func isRoot() bool { return os.Geteuid() == 0 }
