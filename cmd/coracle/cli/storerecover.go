// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/server/storefiles"
)

func storeRecoverCommand(a *App) *cobra.Command {
	cmd := newToolCommand(a, &cobra.Command{
		Use: "recover", Aliases: []string{"cluster-reset"},
		Short: "Continue with this server alone, when a majority of the servers is lost for good", Args: noArgs,
		Long: `When more than half of the voters are lost for good, no write can be agreed on any more. This makes a cluster of one server
out of the store of this machine's server, which has to be stopped; other servers join it again.

Writes that the lost servers acknowledged without this one are lost. Without --yes this shows what this server has and changes
nothing. A copy of the store is kept.

It first asks the other machines that this one knew, by TCP and TLS at the cluster's port, whether a server runs there, and
refuses if one does. Silence is no proof: a server that this machine does not reach may run.`,
	})
	yes := cmd.Flags().Bool("yes", false, "Do it")
	second := cmd.Flags().Bool("second-cluster", false, "With --yes, do it although another server answers. There are two clusters "+
		"then, if the others have a majority: nodes and clients reach sometimes one and sometimes the other, and what is written to "+
		"one of them is lost")
	return cmd.runs(func(inv *invocation) error {
		out := inv.OutOrStdout()
		if *yes {
			return recoverStore(inv.Context(), out, inv.tool, *second)
		}
		s := stoppedServer(inv.tool)
		plan, err := s.PlanRecovery()
		if err != nil {
			return forRoot(err)
		}
		printPlan(out, plan, time.Now())
		if err := printOthers(out, s.AskOthers(inv.Context(), plan)); err != nil {
			return err
		}
		fmt.Fprint(out, "Nothing was changed. To continue with this server's data: coracle store recover --yes\n")
		return errNoMessage
	})
}

// recoverStore makes the store of this machine that of a cluster with one server. It refuses while another server
// answers, unless there may be a second cluster.
func recoverStore(ctx context.Context, out io.Writer, t *config.Tool, second bool) error {
	s := stoppedServer(t)
	plan, err := s.PlanRecovery()
	if err != nil {
		return forRoot(err)
	}
	others := s.AskOthers(ctx, plan)
	if err := printOthers(out, others); err != nil {
		return err
	}
	if err := refuseRecovery(others, second); err != nil {
		return err
	}
	plan, kept, err := s.Recover()
	if err != nil {
		return forRoot(err)
	}
	fmt.Fprintf(out, `This server is the only one of the store now: %d keys.
A copy of the store as it was is in %s.

Now:
  1. Make sure that none of the other servers runs.
  2. Start this server: systemctl start coracle, or however it was started.
  3. On each other server that is to come back: move its folder %s away, then start it; it joins this one.
`, plan.Keys, kept, t.Paths.StoreDir)
	return nil
}

// refuseRecovery returns an error if another server answers and there may be no second cluster.
func refuseRecovery(others []storefiles.Other, second bool) error {
	var answer []string
	for _, o := range others {
		if o.Answers {
			answer = append(answer, o.Address)
		}
	}
	if len(answer) == 0 || second {
		return nil
	}
	return fmt.Errorf("a server answers at %s. Nothing was changed. If the others work, start this server again and let it reach them: "+
		"check the network and the clocks. If they have no majority either, stop them first. With --second-cluster this is done all "+
		"the same: nodes and clients then reach sometimes this cluster and sometimes the others', and what is written to one of them "+
		"is lost", strings.Join(answer, ", "))
}

// printOthers prints which other machines were asked, how, and what they replied.
func printOthers(w io.Writer, others []storefiles.Other) error {
	if len(others) == 0 {
		return printText(w, "No other machine is known here, so none was asked whether another server runs.\n\n")
	}
	if err := printText(w, "These were asked whether another server runs:\n\n"); err != nil {
		return err
	}
	rows := [][]string{}
	for _, o := range others {
		answer := "no"
		if o.Answers {
			answer = "YES"
		}
		rows = append(rows, []string{o.Name, o.Address, strings.Join(o.From, ", "), answer, o.Reply})
	}
	if err := printTable(w, []string{"MACHINE", "ADDRESS", "KNOWN FROM", "ANSWERS", ""}, rows); err != nil {
		return err
	}
	return printText(w, "\nSilence is no proof: a server that this machine does not reach may run, and may have the others.\n\n")
}

// printPlan prints what this server's store holds and which writes may be lost.
func printPlan(w io.Writer, p storefiles.Plan, now time.Time) {
	voters := 0
	var members []storeMember
	var others []string
	for _, m := range p.Members {
		sm := storeMember{ID: hexID(m.ID), Name: m.Name, Address: m.Address, Role: "non-voter", Self: m.Self}
		if m.Voter {
			sm.Role = "voter"
			voters++
		}
		if !m.Self {
			others = append(others, m.Name)
		}
		members = append(members, sm)
	}
	fmt.Fprintf(w, "This server's store has %d keys, %s, at revision %d.\n", p.Keys, bytesText(p.Bytes), p.Revision)
	fmt.Fprintf(w, "Its newest log entry is %d of term %d", p.LastIndex, p.LastTerm)
	if !p.Written.IsZero() {
		fmt.Fprintf(w, ", written %s (%s ago)", p.Written.Local().Format(time.DateTime), formatAge(now.Sub(p.Written)))
	}
	fmt.Fprint(w, ".\n\nThe servers as this one last knew them:\n\n")
	if err := printMembers(w, members); err != nil {
		return // when the members cannot be printed, neither can the rest
	}
	fmt.Fprintf(w, `
If at least %d of the %d voters can still be started, do that instead: then nothing is lost.

Recovering continues with this server's data, and takes nothing from the other servers (%s).
  May be lost: writes that were acknowledged without this server, that is, anything after entry %d.
  May appear: writes at the end of the log here that no client got an acknowledgement for.
If another server's files can still be read, run this command there too, and recover where the term, and in the same
term the entry, is greatest.

`, voters/2+1, voters, strings.Join(others, ", "), p.LastIndex)
}
