// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"github.com/coracle-k8s/coracle/internal/status"
)

func upgradeRaiseCommand(a *App) *cobra.Command {
	cmd := newToolCommand(a, &cobra.Command{
		Use: "raise", Short: "Raise the cluster's level, once all machines run the newer version", Args: noArgs,
		Long: `A newer version of coracle writes and sends in the forms of the cluster's level, which the version before can read: until
the level is raised, every machine can go back to that version. The level also says which minor version of Kubernetes the
cluster is.

This command raises the level by one. It does so only if the programs of all servers, whether they are up or not, and of
all agents that are up know the next level, and else it names those that hold it up. Nothing lowers the level: the way
back is a snapshot from before (coracle snapshot save). Each machine has the new level after a restart of coracle, which
no pod notices. The command lists the machines in the order in which to restart them: servers one by one, the leader
last, then agents.`,
	})
	check := cmd.Flags().Bool("check", false, "Change nothing, and say what holds the next level up")
	return cmd.withOutput("text", "json").runs(func(inv *invocation) error {
		path := status.RaisePath
		if *check {
			path += "?" + status.RaiseCheck
		}
		var l status.Level
		if err := status.NewClient(inv.tool.Paths.AdminSocket).Do(inv.Context(), http.MethodPost, path, &l); err != nil {
			return raiseError(err)
		}
		return failIf(len(l.HoldsUp) > 0, inv.print(l, func(w io.Writer) error { return printText(w, raiseText(&l, *check)) }))
	})
}

// raiseError says what to do about a request to raise the level that was not answered.
func raiseError(err error) error {
	switch {
	case errors.Is(err, status.ErrNotRunning):
		return errors.New("no server runs on this machine. Nothing was changed; coracle status says more")
	case errors.Is(err, fs.ErrPermission):
		return errors.New("only root may raise the level; use sudo")
	case strings.HasPrefix(err.Error(), "404 "):
		return errors.New("this machine runs an agent, and the level is raised by servers: run this on a server. Nothing was changed")
	}
	return err
}

// raiseText says what came of a request to raise the level, or of a check.
func raiseText(l *status.Level, check bool) string {
	var b strings.Builder
	next := fmt.Sprintf("level %d%s", l.Next, ofKubernetes(l.NextKubernetes))
	switch {
	case l.Raised:
		fmt.Fprintf(&b, "The cluster has level %d%s.\n", l.Cluster, ofKubernetes(l.Kubernetes))
	case l.Next == 0:
		fmt.Fprintf(&b, "The cluster has level %d%s, the newest that this coracle knows; there is nothing to raise.\n", l.Cluster,
			ofKubernetes(l.Kubernetes))
	case len(l.HoldsUp) > 0:
		fmt.Fprintf(&b, "The cluster has level %d%s. Nothing was changed. These hold %s up:\n", l.Cluster, ofKubernetes(l.Kubernetes), next)
		for _, h := range l.HoldsUp {
			b.WriteString("! " + printableText(h) + "\n")
		}
	case check:
		fmt.Fprintf(&b, "The cluster has level %d%s. Nothing holds %s up.\n", l.Cluster, ofKubernetes(l.Kubernetes), next)
		b.WriteString("Save the cluster before (coracle snapshot save): nothing lowers the level again. Then: coracle upgrade raise\n")
	}
	if len(l.Off) > 0 {
		fmt.Fprintf(&b, "These nodes are off: %s. Install this version there before coracle starts on them again: an older one is refused.\n",
			printableText(strings.Join(l.Off, ", ")))
	}
	if len(l.Restart) > 0 {
		b.WriteString("Restart coracle on these machines, one after the other, in this order. Pods keep running:\n")
		for _, m := range l.Restart {
			b.WriteString("  " + printableText(m) + "\n")
		}
	}
	return b.String()
}

// ofKubernetes returns the words for the minor version of a level, none if it is unknown.
func ofKubernetes(minor string) string {
	if minor == "" {
		return ""
	}
	return " (Kubernetes " + minor + ")"
}

// levelText is the cluster's level in one line of status.
func levelText(l *status.Level) string {
	text := fmt.Sprintf("%d%s", l.Cluster, ofKubernetes(l.Kubernetes))
	switch {
	case l.Next > 0 && len(l.HoldsUp) > 0:
		text += fmt.Sprintf("; what holds level %d up: coracle upgrade raise --check", l.Next)
	case l.Next > 0:
		text += fmt.Sprintf("; all machines know level %d%s: coracle upgrade raise", l.Next, ofKubernetes(l.NextKubernetes))
	}
	if l.Running != l.Cluster {
		text += fmt.Sprintf("; this process runs at level %d", l.Running)
	}
	return text
}

// restartText says which machines have to restart for the cluster's level.
func restartText(l *status.Level) string {
	return fmt.Sprintf("the cluster has level %d; these machines have it after a restart of coracle, one after the other in this order: %s",
		l.Cluster, strings.Join(l.Restart, ", "))
}
