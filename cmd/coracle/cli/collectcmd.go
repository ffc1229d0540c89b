// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/coracle-k8s/coracle/cmd/coracle/cli/bugreport"
	"github.com/coracle-k8s/coracle/cmd/coracle/cli/profiling"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/preflight"
)

// collectTime is how long coracle debug collect gathers. What is stalled then is left out.
const collectTime = 45 * time.Second

// introduction is the beginning of the README in the archive.
const introduction = `This is the state of a machine with coracle, for a bug report. It was made by: coracle debug collect

LOOK THROUGH IT BEFORE YOU SEND IT TO ANYBODY. It was made to have no Secrets, no tokens, keys or passwords, and no values
of environment variables, arguments, ConfigMaps or Helm charts: objects have only the columns that "kubectl get" shows,
and in logs and messages such values are replaced by ***. But a secret that stands in a log as a plain word, without a name
before it, is not found. It has names and addresses: of machines, namespaces, pods, images, ConfigMaps and their keys.
There are no logs of pods in it.

Each folder has one kind of files:
`

func debugCollectCommand(a *App) *cobra.Command {
	cmd := newToolCommand(a, &cobra.Command{
		Use: "collect", Short: "Gather what a bug report needs into one archive", Args: noArgs,
		Long: `Gathers the state of coracle and of this machine into one archive (.tar.gz, at most 20 MB, within a minute): status, check,
settings, log, stacks and heap of the running process, the cluster's objects as kubectl get shows them, containers,
networks, mounts, disks, memory and the kernel's messages. What does not respond is left out, and the README in the
archive says so: it also works while coracle or its API server does not.

The archive has no Secrets, tokens, keys or passwords, and no values of environment variables, arguments, ConfigMaps or
Helm charts. Look through it before you send it: a secret that a log has as a plain word is not recognised. Only its
owner may read it.`,
	})
	output := cmd.Flags().String("output", ".", "File to write, which must not exist, or folder for a file with the names of host and time")
	return cmd.runs(func(inv *invocation) error {
		ctx, stop := untilInterrupted(inv.Context())
		defer stop()
		return a.collect(ctx, inv.tool, *output)
	})
}

// collect makes the archive and says where it is.
func (a *App) collect(ctx context.Context, t *config.Tool, output string) error {
	if !isRoot() {
		a.warn("only root may see all of the state; without it the archive lacks most of it")
	}
	now := time.Now()
	host, err := a.Host.Hostname()
	if err != nil {
		host = "machine"
	}
	folder := "coracle-" + strings.ReplaceAll(host, "/", "-") + "-" + now.UTC().Format("20060102T150405Z")
	path := output
	if isDir(output) {
		path = filepath.Join(output, folder+".tar.gz")
	}
	var archive *bugreport.Archive
	err = writeResponse(path, func(w io.Writer) error {
		c := newCollector(a, t)
		limited, cancel := context.WithTimeout(ctx, collectTime)
		defer cancel()
		archive = bugreport.Collect(limited, c.mask.Text, introduction, c.sections())
		if err := ctx.Err(); err != nil {
			return errors.New("interrupted; nothing was changed, and no archive is left")
		}
		return archive.Write(w, folder, now)
	})
	if err != nil {
		return err
	}
	if n := len(archive.Failed); n > 0 {
		a.warn("%d pieces are missing; README.txt in the archive says which and why", n)
	}
	_, err = fmt.Fprintf(a.Stdout, "%s\nIt has no Secrets, tokens or keys as far as coracle can tell. Look through it before you send it: tar -xzf %s\n", path, path)
	return err
}

// sections are the folders of the archive.
func (c *collector) sections() []bugreport.Section {
	return []bugreport.Section{
		{Name: "status", About: "coracle status, check and version", Collect: c.collectStatus},
		{Name: "config", About: "the settings that were given, without secret ones; registries' names, without logins", Collect: c.collectConfig},
		{Name: "process", About: "what the running coracle does (goroutines), what holds its memory (go tool pprof), its limits", Collect: c.collectProcess},
		{Name: "log", About: "the end of coracle's log, with *** for secrets; the state of its service", Collect: c.collectLog},
		{Name: "api", About: "objects as kubectl get -o wide shows them; conditions of nodes and pods; names and keys of ConfigMaps; metrics of the store",
			Collect: c.collectAPI},
		{Name: "node", About: "containers, images, tasks and snapshots of containerd; pods and volumes of the kubelet; names of pods' logs", Collect: c.collectNode},
		{Name: "network", About: "addresses, routes, neighbours, firewall rules, IPVS, sockets, DNS servers", Collect: c.collectNetwork},
		{Name: "host", About: "kernel, mounts, disks, memory, processes by name, the kernel's newest messages", Collect: c.collectHost},
		{Name: "data", About: "names, sizes and times of files in coracle's data directory, without their content", Collect: c.collectData},
	}
}

func (c *collector) collectStatus(ctx context.Context, f *bugreport.Files) {
	f.Text("version.txt", c.versionText())
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	var text, object strings.Builder
	r, err := c.app.findStatus(ctx, c.tool)
	if err == nil {
		err = errors.Join(printStatus(&text, r, time.Now()), printJSON(&object, r))
		f.Text("status.txt", text.String())
		f.Text("status.json", object.String())
	}
	f.Failed("status.txt", err)
	if c.command == config.AgentCommand {
		return // the checks are those of a server
	}
	var checks strings.Builder
	settings, err := config.LoadServer(c.sources)
	f.Failed("check.txt", err) // wrong settings are checked nevertheless, as by coracle check
	err = printChecks(&checks, preflight.Run(ctx, c.app.CheckHost(), needsOf(settings)))
	f.Text("check.txt", checks.String())
	f.Failed("check.txt", err)
}

func (c *collector) versionText() string {
	v := c.app.versionInfo()
	var b strings.Builder
	printVersion(&b, v)
	return b.String()
}

func (c *collector) collectProcess(ctx context.Context, f *bugreport.Files) {
	for name, path := range map[string]string{"stacks.txt": profiling.StacksPath, "heap.pprof": profiling.HeapPath} {
		var out strings.Builder
		ctx, cancel := context.WithTimeout(ctx, statusTimeout)
		err := askDebug(ctx, c.tool, &out, path)
		cancel()
		f.Failed(name, err)
		if err == nil {
			f.Binary(name, []byte(out.String())) // names of functions only
		}
	}
	if c.pid == 0 {
		return
	}
	for _, name := range []string{"status", "limits", "cgroup", "io", "sched", "oom_score", "smaps_rollup"} {
		c.copyFile(f, name+".txt", fmt.Sprintf("/proc/%d/%s", c.pid, name))
	}
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", c.pid))
	f.Failed("descriptors.txt", err)
	f.Text("descriptors.txt", fmt.Sprintf("%d open descriptors\n", len(entries)))
}
