// SPDX-License-Identifier: Apache-2.0

package status

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// ClocksPath is the path at which a server's API reports problems of clocks to nodes (clusterconfig.ClocksRole). The
// response is a ClocksReport in JSON.
const ClocksPath = "/coracle/clocks"

// ClocksReport is what a server knows about the clocks of the cluster's machines.
type ClocksReport struct {
	Now      time.Time `json:"now"` // by the clock of the server that replies
	Problems []string  `json:"problems,omitempty"`
}

const (
	// ClockNoted is by how much a clock may differ from others before status names it.
	ClockNoted = 30 * time.Second
	// clockAllowed is by how much the clock of a server may be off while others take its certificates and tokens. It is
	// pki.Backdate.
	clockAllowed = time.Hour
)

// Clocks returns the problems of servers' clocks. A clock is off that differs from those with which a majority of all
// servers agrees. Where none do, it is not known which are wrong.
func Clocks(servers []ClusterServer) (problems []string) {
	var compared []ClusterServer
	for _, s := range servers {
		if s.Self || s.ClockWithin > 0 {
			compared = append(compared, s)
		}
	}
	agree := func(a, b ClusterServer) bool {
		return (a.ClockAhead - b.ClockAhead).Abs() <= ClockNoted+a.ClockWithin+b.ClockWithin
	}
	most, right := 0, ClusterServer{}
	for _, s := range compared {
		n := 0
		for _, o := range compared {
			if agree(s, o) {
				n++
			}
		}
		if n > most || n == most && s.Self {
			most, right = n, s
		}
	}
	switch {
	case most == len(compared):
		return nil
	case 2*most <= len(servers):
		return []string{differingClocks(compared)}
	}
	for _, s := range compared {
		if agree(s, right) {
			continue
		}
		by := s.ClockAhead - right.ClockAhead
		problem := fmt.Sprintf("%s: its clock is %s those of the other servers. Set it (NTP): timedatectl shows why it is not kept right there",
			s.Name, ClockWords(by))
		if by.Abs() > clockAllowed {
			problem += ". Until then that server does not lead, refuses valid certificates and tokens, and nodes use other servers"
		}
		problems = append(problems, problem)
	}
	return problems
}

// OwnClock returns the problem of a machine's clock, or "". The machine asked a server for a report at a time by its
// own clock, which took a while. The server's clock may be the one that is wrong: then the report has a problem of it.
func OwnClock(r *ClocksReport, asked time.Time, took time.Duration) string {
	by := asked.Add(took / 2).Round(0).Sub(r.Now)
	if by.Abs() <= ClockNoted+took/2 {
		return ""
	}
	return fmt.Sprintf("this machine's clock is %s that of the server that it uses. Set the one that is wrong (NTP): by more than an hour, "+
		"certificates and tokens are refused", ClockWords(by))
}

// differingClocks names clocks of which no majority agrees.
func differingClocks(servers []ClusterServer) string {
	i := max(0, slices.IndexFunc(servers, func(s ClusterServer) bool { return s.Self }))
	var all []string
	for j, s := range servers {
		if by := s.ClockAhead - servers[i].ClockAhead; j != i {
			all = append(all, fmt.Sprintf("%s is %s it", s.Name, ClockWords(by)))
		}
	}
	return fmt.Sprintf("the clocks of the servers differ, and no majority of them agrees. By the clock of %s, that of %s. Set the wrong ones (NTP)",
		servers[i].Name, strings.Join(all, ", that of "))
}

// ClockWords says how far a clock is ahead of another one, such as "3h5m0s behind".
func ClockWords(by time.Duration) string {
	word := "ahead of"
	if by < 0 {
		word = "behind"
	}
	by = by.Abs()
	const day = 24 * time.Hour
	if by >= 2*day {
		return fmt.Sprintf("%d days %s", by.Round(day)/day, word)
	}
	return fmt.Sprintf("%s %s", by.Round(time.Second), word)
}
