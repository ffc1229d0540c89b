// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/coracle-k8s/coracle/internal/config"
)

// embeddedByName holds the names under which coracle acts as another program.
var embeddedByName = map[string]bool{"kubectl": true, "ctr": true, "crictl": true, "helm": true}

// client is a program that is a client of the API server.
type client struct {
	name, summary string
	choosing      []string // flags that select a cluster
	localCommands []string // subcommands that need no cluster
}

func kubectl() client {
	return client{
		name: "kubectl", summary: "Use the cluster: kubectl, with this cluster's kubeconfig unless another one is given",
		choosing:      []string{"--kubeconfig", "--server", "-s"},
		localCommands: []string{"help", "completion", "config", "options", "kustomize", "plugin", "__complete", "__completeNoDesc"},
	}
}

func helm() client {
	return client{
		name: "helm", summary: "Install charts by hand: helm, with this cluster's kubeconfig unless another one is given",
		choosing: []string{"--kubeconfig", "--kube-apiserver", "--kube-context"},
		localCommands: []string{
			"help", "completion", "create", "dependency", "dep", "env", "lint", "package", "plugin", "pull", "fetch", "push", "registry",
			"repo", "search",
			"show", "inspect", "template", "verify", "version", "__complete", "__completeNoDesc",
		},
	}
}

func clientCommand(a *App, c client) *cobra.Command {
	return &cobra.Command{
		Use: c.name, GroupID: groupUse, Short: c.summary,
		DisableFlagParsing: true,
		RunE: run(func(_ *cobra.Command, args []string) error {
			t := a.tool()
			env, err := c.environ(a.Environ, t, args)
			if err != nil {
				return err
			}
			a.Become(c.name, args, env)
			return nil
		}),
		ValidArgsFunction: func(_ *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
			return c.complete(a, args, toComplete)
		},
	}
}

func ctrCommand(a *App) *cobra.Command {
	return &cobra.Command{
		Use: "ctr", GroupID: groupUse, Short: "Inspect containers and images: containerd's ctr, in the namespace of Kubernetes",
		DisableFlagParsing: true,
		RunE: run(func(_ *cobra.Command, args []string) error {
			t := a.tool()
			env := setDefault(a.Environ, "CONTAINERD_ADDRESS", t.Paths.ContainerdSocket)
			env = setDefault(env, "CONTAINERD_NAMESPACE", "k8s.io")
			// ctr warns of what containerd's next version drops, such as cgroup v1. These warnings are for those who
			// embed containerd: a user of coracle can do nothing about them.
			env = setDefault(env, "CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS", "true")
			a.Become("ctr", args, env)
			return nil
		}),
	}
}

// crictlCommand runs a crictl that the user installed. Coracle has none of its own.
func crictlCommand(a *App) *cobra.Command {
	return &cobra.Command{
		Use: "crictl", Hidden: true, Short: "Run an installed crictl on this node's containers",
		DisableFlagParsing: true,
		RunE: run(func(_ *cobra.Command, args []string) error {
			endpoint := "unix://" + a.tool().Paths.ContainerdSocket
			path := findOther(a.Environ, "crictl")
			if path == "" {
				return fmt.Errorf("crictl is not part of coracle and not installed here; an installed one works with: crictl "+
					"--runtime-endpoint %s. coracle ctr does much of the same", endpoint)
			}
			env := setDefault(a.Environ, "CONTAINER_RUNTIME_ENDPOINT", endpoint)
			env = setDefault(env, "IMAGE_SERVICE_ENDPOINT", endpoint)
			return execve(path, append([]string{"crictl"}, args...), env)
		}),
	}
}

// tool returns the paths that the settings name, or the defaults when the configuration has errors: these commands need
// nothing else of it.
func (a *App) tool() *config.Tool {
	t, err := config.LoadTool(a.sources(nil))
	if err != nil {
		a.warn("%v; going on with the defaults", err)
		return &config.Tool{Paths: config.NewPaths(config.DefaultDataDir, ""), Kubeconfig: config.DefaultKubeconfig}
	}
	return t
}

func execve(path string, argv, env []string) error {
	return fmt.Errorf("starting %s: %w", path, syscall.Exec(path, argv, env))
}

// environ returns the environment in which a program uses this machine's cluster, unless the user has selected a
// cluster.
func (c client) environ(environ []string, t *config.Tool, args []string) ([]string, error) {
	if getenv(environ, "KUBECONFIG") != "" || c.choosesCluster(args) {
		return environ, nil
	}
	f, err := os.Open(t.Kubeconfig)
	if err == nil {
		_ = f.Close() // opened only to check that it can be read
		return setDefault(environ, "KUBECONFIG", t.Kubeconfig), nil
	}
	home := getenv(environ, "HOME")
	if home != "" && exists(filepath.Join(home, ".kube", "config")) {
		return environ, nil
	}
	switch {
	case c.withoutCluster(args):
		return environ, nil
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("this user may not read %s. Use sudo coracle %s, or give this user a copy: sudo coracle kubeconfig > "+
			"~/.kube/config, or let a group read it with --write-kubeconfig-mode 0640 and --write-kubeconfig-group", t.Kubeconfig, c.name)
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("there is no %s: %s; or name another cluster's kubeconfig in KUBECONFIG", t.Kubeconfig, noServer(t.Paths))
	}
	return nil, fmt.Errorf("reading the kubeconfig: %w", err)
}

// noServer says why a server's file is missing on this machine, and what to do.
func noServer(p config.Paths) string {
	if exists(p.AgentDir) && !exists(p.ServerDir) {
		return "this machine is a node, and its cluster's servers are other machines. Run this on one of them"
	}
	return "no server has run on this machine yet. Start one with: coracle server"
}

// choosesCluster says whether the arguments select a cluster.
func (c client) choosesCluster(args []string) bool {
	return slices.ContainsFunc(args, func(s string) bool {
		name, _, _ := strings.Cut(s, "=")
		return slices.Contains(c.choosing, name)
	})
}

// withoutCluster says whether the program's command works without any cluster.
func (c client) withoutCluster(args []string) bool {
	return len(args) == 0 || slices.Contains(args, "--help") || slices.Contains(args, "-h") || slices.Contains(args, "--client") ||
		slices.Contains(c.localCommands, args[0])
}

// complete returns the completions of the program, which completes in a process of its own.
func (c client) complete(a *App, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	t := a.tool()
	env, err := c.environ(a.Environ, t, args)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	cmd := exec.Command("/proc/self/exe", append(append([]string{"__complete"}, args...), toComplete)...)
	cmd.Args[0], cmd.Env = c.name, env
	out, err := cmd.Output()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return parseCompletion(string(out))
}

// parseCompletion reads cobra's protocol: a candidate on each line, then ":<directive>".
func parseCompletion(out string) ([]string, cobra.ShellCompDirective) {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	last := lines[len(lines)-1]
	var directive int
	if _, err := fmt.Sscanf(last, ":%d", &directive); err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return lines[:len(lines)-1], cobra.ShellCompDirective(directive)
}

// findOther returns the path of a program on the PATH that is not a link to this program, or "".
func findOther(environ []string, name string) string {
	self, err := os.Executable()
	if err != nil {
		return ""
	}
	selfInfo, err := os.Stat(self)
	if err != nil {
		return ""
	}
	for _, dir := range filepath.SplitList(getenv(environ, "PATH")) {
		path := filepath.Join(dir, name)
		fi, err := os.Stat(path)
		if err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 && !os.SameFile(fi, selfInfo) {
			return path
		}
	}
	return ""
}

func getenv(environ []string, name string) string {
	for _, kv := range environ {
		if v, ok := strings.CutPrefix(kv, name+"="); ok {
			return v
		}
	}
	return ""
}

// setDefault sets a variable of the environment, unless it has a value.
func setDefault(environ []string, name, value string) []string {
	if getenv(environ, name) != "" {
		return environ
	}
	without := slices.DeleteFunc(slices.Clone(environ), func(kv string) bool { return strings.HasPrefix(kv, name+"=") })
	return append(without, name+"="+value)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
