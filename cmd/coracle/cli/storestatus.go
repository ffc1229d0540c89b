// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/status"
)

// storeStatus is the output of coracle store status.
type storeStatus struct {
	Cluster      string        `json:"cluster"` // the id of etcd's protocol, in hexadecimal, like all ids here
	Member       string        `json:"member"`
	Leader       string        `json:"leader,omitempty"` // empty when there is no leader
	Version      string        `json:"version"`          // of the etcd API
	Term         uint64        `json:"term"`
	LastIndex    uint64        `json:"lastIndex"`
	AppliedIndex uint64        `json:"appliedIndex"`
	Revision     int64         `json:"revision"`
	Keys         *int64        `json:"keys"`       // null when not known
	Bytes        int64         `json:"bytes"`      // size of the current keys and values
	TotalBytes   int64         `json:"totalBytes"` // with the history of the keys
	QuotaBytes   int64         `json:"quotaBytes,omitempty"`
	LogBytes     int64         `json:"logBytes"` // size on disk
	Snapshot     storeSnapshot `json:"snapshot"`
	Members      []storeMember `json:"members"`
	Problems     []string      `json:"problems"`
}

// storeSnapshot is the newest snapshot in the store's folder.
type storeSnapshot struct {
	Bytes int64     `json:"bytes"`
	Taken time.Time `json:"taken,omitzero"`
}

// storeMember is one server of the store.
type storeMember struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Address string `json:"address,omitempty"`
	Role    string `json:"role"` // leader, voter, non-voter
	Self    bool   `json:"self,omitempty"`
}

func storeStatusCommand(a *App) *cobra.Command {
	return newToolCommand(a, &cobra.Command{
		Use: "status", Short: "Show the state of the store: servers, leader, revision, sizes, last snapshot", Args: noArgs,
		Long: `Asks the store of the server that runs on this machine. The exit code is 0 when everything is well, 1 when something is
wrong.`,
	}).withOutput("text", "json").runs(func(inv *invocation) error {
		return withStore(inv.Context(), inv.tool, func(ctx context.Context, c *clientv3.Client) error {
			s, err := askStore(ctx, c, inv.tool.Paths)
			if err != nil {
				return err
			}
			return failIf(len(s.Problems) > 0, inv.print(s, func(w io.Writer) error { return s.print(w, time.Now()) }))
		})
	})
}

// hideFormer gives a command an earlier name, which still works, and hides it.
func hideFormer(cmd *cobra.Command, use string, aliases ...string) *cobra.Command {
	cmd.Use, cmd.Aliases, cmd.Hidden = use, aliases, true
	return cmd
}

// askStore returns what the store reports without a majority and what the files in its folder show.
func askStore(ctx context.Context, c *clientv3.Client, p config.Paths) (*storeStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	st, err := c.Status(ctx, c.Endpoints()[0])
	if err != nil {
		return nil, err
	}
	s := &storeStatus{
		Cluster: hexID(st.Header.ClusterId), Member: hexID(st.Header.MemberId), Version: st.Version,
		Term: st.RaftTerm, LastIndex: st.RaftIndex, AppliedIndex: st.RaftAppliedIndex, Revision: st.Header.Revision,
		Bytes: st.DbSizeInUse, TotalBytes: st.DbSize, QuotaBytes: st.DbSizeQuota,
		Problems: []string{},
	}
	for _, text := range st.Errors {
		s.Problems = append(s.Problems, problemText(text, p.StoreDir))
	}
	if st.Leader != 0 {
		s.Leader = hexID(st.Leader)
	} else {
		s.Problems = append(s.Problems, "there is no leader: no majority of the voters can be reached, or an election is under way. "+
			"Nothing is lost; writes wait until a majority is back. If it never comes back, and coracle status names no other server as "+
			"alive: coracle store recover, and docs/operations/recover.md")
	}
	if s.Members, err = listMembers(ctx, c, st); err != nil {
		return nil, err
	}
	keys, err := countKeys(ctx, c)
	switch {
	case err == nil:
		s.Keys = &keys
	case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil:
		s.Problems = append(s.Problems, "this server has not yet received what the other servers wrote since it started, so its store cannot be read")
	default:
		return nil, err
	}
	s.LogBytes = filesSize(filepath.Join(p.StoreDir, "log", "*.segment"))
	s.Snapshot = newestSnapshot(filepath.Join(p.StoreDir, "snapshots", "*.snapshot"))
	return s, nil
}

// countKeys asks only this server. A server that has not caught up since it started does not reply.
func countKeys(ctx context.Context, c *clientv3.Client) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, countTimeout)
	defer cancel()
	all, err := c.Get(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithCountOnly(), clientv3.WithSerializable())
	if err != nil {
		return 0, err
	}
	return all.Count, nil
}

// countTimeout is how long counting the keys may take. It usually takes some milliseconds.
const countTimeout = 2 * time.Second

// problemText replaces the store's phrases for what it refuses writes for by texts with advice.
func problemText(text, dir string) string {
	switch {
	case strings.Contains(text, "database space exceeded"): // etcd's phrase
		return "the disk of " + dir + " is full: writes are refused, reads go on. Nothing is lost. Free some space; writes are accepted " +
			"again by themselves"
	case strings.Contains(text, "the quota is used up"):
		return status.RefusalProblem("quota")
	}
	return status.RefusalProblem("disk_failing") + " (" + text + ")"
}

func listMembers(ctx context.Context, c *clientv3.Client, st *clientv3.StatusResponse) ([]storeMember, error) {
	list, err := c.MemberList(ctx, clientv3.WithSerializable()) // works without a majority
	if err != nil {
		return nil, err
	}
	out := []storeMember{}
	for _, m := range list.Members {
		sm := storeMember{ID: hexID(m.ID), Name: m.Name, Role: "voter", Self: m.ID == st.Header.MemberId}
		if len(m.PeerURLs) > 0 {
			_, address, _ := strings.Cut(m.PeerURLs[0], "://")
			if strings.Contains(address, ":") { // the server of a cluster of one has a name there
				sm.Address = address
			}
		}
		switch {
		case m.IsLearner:
			sm.Role = "non-voter"
		case m.ID == st.Leader:
			sm.Role = "leader"
		}
		out = append(out, sm)
	}
	return out, nil
}

func hexID(id uint64) string { return strconv.FormatUint(id, 16) }

func filesSize(pattern string) int64 {
	var total int64
	paths, _ := filepath.Glob(pattern) // the pattern is well-formed
	for _, path := range paths {
		if info, err := os.Stat(path); err == nil {
			total += info.Size()
		}
	}
	return total
}

func newestSnapshot(pattern string) storeSnapshot {
	paths, _ := filepath.Glob(pattern) // the pattern is well-formed; Glob sorts, and the names sort by age
	for i := len(paths) - 1; i >= 0; i-- {
		if info, err := os.Stat(paths[i]); err == nil {
			return storeSnapshot{info.Size(), info.ModTime()}
		}
	}
	return storeSnapshot{}
}

func (s *storeStatus) print(w io.Writer, now time.Time) error {
	var b strings.Builder
	role := "there is no leader"
	for _, m := range s.Members {
		switch {
		case m.Self && m.Role == "leader":
			role = "this server leads"
		case m.Role == "leader":
			role = m.Name + " leads"
		}
	}
	fmt.Fprintf(&b, "store     %s, term %d; this server is %s\n", role, s.Term, s.Member)
	fmt.Fprintf(&b, "revision  %d\n", s.Revision)
	keys := "not known"
	if s.Keys != nil {
		keys = strconv.FormatInt(*s.Keys, 10)
	}
	fmt.Fprintf(&b, "keys      %s, %s; with history %s", keys, bytesText(s.Bytes), bytesText(s.TotalBytes))
	if s.QuotaBytes > 0 {
		fmt.Fprintf(&b, " of the %s allowed", bytesText(s.QuotaBytes))
	}
	fmt.Fprintf(&b, "\nlog       entry %d, applied %d; %s on disk\n", s.LastIndex, s.AppliedIndex, bytesText(s.LogBytes))
	if s.Snapshot.Taken.IsZero() {
		b.WriteString("snapshot  none yet: the log has everything\n")
	} else {
		fmt.Fprintf(&b, "snapshot  %s, taken %s ago\n", bytesText(s.Snapshot.Bytes), formatAge(now.Sub(s.Snapshot.Taken)))
	}
	b.WriteByte('\n')
	if err := printMembers(&b, s.Members); err != nil {
		return err
	}
	b.WriteByte('\n')
	switch {
	case len(s.Problems) > 0:
	case len(s.Members) > 1:
		b.WriteString("Nothing is wrong with this server's store. coracle status asks the other servers too.\n")
	default:
		b.WriteString("Nothing is wrong.\n")
	}
	for _, p := range s.Problems {
		b.WriteString("! " + p + "\n")
	}
	if s.QuotaBytes > 0 && s.Bytes*5 >= s.QuotaBytes*4 {
		fmt.Fprintf(&b, "note: the keys take %d%% of the quota. coracle store usage says what takes most\n", s.Bytes*100/s.QuotaBytes)
	}
	return printText(w, b.String())
}

func printMembers(w io.Writer, members []storeMember) error {
	rows := [][]string{}
	for _, m := range members {
		note := ""
		if m.Self {
			note = "this server"
		}
		rows = append(rows, []string{m.Name, m.ID, m.Role, m.Address, note})
	}
	return printTable(w, []string{"SERVER", "ID", "ROLE", "ADDRESS", ""}, rows)
}
