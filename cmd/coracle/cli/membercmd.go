// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/status"
)

func memberCommand(a *App) *cobra.Command {
	return commandGroup(&cobra.Command{
		Use: "member", Aliases: []string{"members"}, GroupID: groupUse, Short: "List the cluster's servers, remove or promote one",
		Long: `The servers of a cluster replicate its store. An odd number of them vote, at most five: a majority of these has to work.
These commands ask the server that runs on this machine, and work on any of them. Nodes without a server are listed by
"coracle kubectl get nodes".`,
	}, memberListCommand(a), memberRemoveCommand(a), memberPromoteCommand(a))
}

func memberListCommand(a *App) *cobra.Command {
	return newToolCommand(a, &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the servers, and show which failures the cluster can survive", Args: noArgs,
		Long: `Lists the servers: which one leads, which vote, which answer this server, how many entries of the store's log each has yet to
apply, and their versions. It needs no majority. The exit code is 0 when everything is well, 1 when something is wrong.`,
	}).withOutput("text", "json").runs(func(inv *invocation) error {
		s, err := askServers(inv.Context(), inv.tool)
		if err != nil {
			return err
		}
		return failIf(len(s.Problems) > 0, inv.print(s, func(w io.Writer) error { return printServers(w, s, time.Now()) }))
	})
}

func memberRemoveCommand(a *App) *cobra.Command {
	return newToolCommand(a, &cobra.Command{
		Use: "remove NAME", Aliases: []string{"rm"}, Short: "Remove a server from the cluster that will not come back",
		Args: cobra.ExactArgs(1),
		Long: `Removes a server from the cluster's store. NAME is its name, id or address, as "coracle member list" shows it. The removal is
refused when the other servers could not continue without it. The server's node stays: "coracle kubectl delete node NAME"
removes both.

What the server holds on its disk cannot be used again in this cluster. To let the machine join again, stop it and move
the store's folder away first.`,
	}).runs(changeMember(func(ctx context.Context, c *clientv3.Client, id uint64) error {
		_, err := c.MemberRemove(ctx, id)
		return err
	}, "%s is no server of the cluster any more. If it still runs, stop it: sudo coracle-uninstall there removes it.\n"))
}

func memberPromoteCommand(a *App) *cobra.Command {
	return newToolCommand(a, &cobra.Command{
		Use: "promote NAME", Short: "Give a server the vote of one that does not answer, at once", Args: cobra.ExactArgs(1),
		Long: `A server without a vote has everything that the others have. When a voter has been unresponsive for a minute, it gets that voter's
vote automatically; this command does so at once. It is refused when all voters answer: one more would make their number even, and an even
number survives no more failures.`,
	}).runs(changeMember(func(ctx context.Context, c *clientv3.Client, id uint64) error {
		_, err := c.MemberPromote(ctx, id)
		return err
	}, "%s has a vote.\n"))
}

// changeMember finds the server that the argument names and applies change to it through the store. Then it prints
// done, a format with the server's name.
func changeMember(change func(context.Context, *clientv3.Client, uint64) error, done string) func(*invocation) error {
	return func(inv *invocation) error {
		s, err := askServers(inv.Context(), inv.tool)
		if err != nil {
			return err
		}
		m, err := pickServer(s.Servers, inv.args[0])
		if err != nil {
			return err
		}
		id, err := strconv.ParseUint(m.ID, 16, 64)
		if err != nil {
			return fmt.Errorf("the server's id %q is no number: %w", m.ID, err)
		}
		return withStore(inv.Context(), inv.tool, func(ctx context.Context, c *clientv3.Client) error {
			ctx, cancel := context.WithTimeout(ctx, storeTimeout)
			defer cancel()
			err := change(ctx, c, id)
			if err == nil {
				inv.Printf(done, m.Name)
			}
			return err
		})
	}
}

// pickServer finds the server that the user named, by its name, id, server id or address.
func pickServer(servers []status.ClusterServer, name string) (status.ClusterServer, error) {
	var found []status.ClusterServer
	var names []string
	for _, s := range servers {
		if name == s.Name || name == s.ID || name == s.ServerID || name == s.Address {
			found = append(found, s)
		}
		if s.Name == s.ServerID { // the server has no node and does not answer: its address says more
			names = append(names, cmp.Or(s.Address, s.Name))
			continue
		}
		names = append(names, s.Name)
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return status.ClusterServer{}, fmt.Errorf("there is no server %q. Nothing was changed. There are: %s", name,
			strings.Join(names, ", "))
	}
	return status.ClusterServer{}, fmt.Errorf("there are %d servers %q. Nothing was changed. Give the id instead: "+
		"coracle member list", len(found), name)
}

// askServers asks this machine's server for the state of all servers.
func askServers(ctx context.Context, t *config.Tool) (*status.Servers, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	var s status.Servers
	err := status.NewClient(t.Paths.AdminSocket).Do(ctx, http.MethodGet, status.ServersPath, &s)
	switch {
	case err == nil:
		return &s, nil
	case errors.Is(err, status.ErrNotRunning):
		return nil, errors.New("no server runs on this machine. coracle status says more")
	case errors.Is(err, fs.ErrPermission):
		return nil, errors.New("only root may ask about the servers; use sudo")
	case strings.HasPrefix(err.Error(), "404 "):
		return nil, errors.New("what runs on this machine is an agent: ask on a server")
	}
	return nil, err
}

func printServers(w io.Writer, s *status.Servers, now time.Time) error {
	var b strings.Builder
	if err := printServerTable(&b, s.Servers, now); err != nil {
		return err
	}
	fmt.Fprintf(&b, "\nmay fail: %s\n", s.Failures)
	for _, p := range s.Problems {
		b.WriteString("! " + p + "\n")
	}
	return printText(w, b.String())
}

func printServerTable(w io.Writer, servers []status.ClusterServer, now time.Time) error {
	rows := [][]string{}
	for _, m := range servers {
		state := "answers"
		switch {
		case m.Answers && m.Stalled:
			state = "disk stalled"
		case m.Self:
			state = "this server"
		case !m.Answers && m.Heard.IsZero():
			state = "never reached"
		case !m.Answers:
			state = "unreachable for " + formatAge(now.Sub(m.Heard))
		}
		lag := "-"
		if m.Answers {
			lag = strconv.FormatUint(m.Lag, 10)
		}
		rows = append(rows, []string{m.Name, m.Role, state, lag, m.Version, m.Address, m.ID})
	}
	return printTable(w, []string{"SERVER", "ROLE", "STATE", "LAG", "VERSION", "ADDRESS", "ID"}, rows)
}
