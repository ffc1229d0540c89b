// SPDX-License-Identifier: Apache-2.0

package balancer

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/joining/protocol"
)

const (
	// maxServers is how many servers are remembered. A cluster has up to seven, and they may change. maxVerified is how
	// many of these are kept whatever other sources say.
	maxServers, maxVerified = 16, 8
	// maxFileBytes limits the size of the file with the list, in bytes.
	maxFileBytes = 64 << 10
	// responsiveWindow is how long a server counts as responsive after a reply. Replies arrive once a second, a moment
	// after the node's check (internal/timers), and the second check after the last reply has to find the server
	// unresponsive. With two whole seconds only the third check would.
	responsiveWindow = 1800 * time.Millisecond
	// extraGap is by how much longer than the average the next reply may take from a server whose replies usually
	// arrive less often than once a second, as over a line with a round trip longer than that. Only times between two
	// replies below maxGap count for the average.
	extraGap, maxGap = 700 * time.Millisecond, 3 * time.Second
	// verifiedTTL is how long after a proof new connections are opened without another handshake.
	verifiedTTL = 5 * time.Second
	// recentReply is how long a reply proves that this machine is neither slow nor cut off: replies arrive once a
	// second.
	recentReply = 1200 * time.Millisecond
)

// serverList is the list of servers, what is known of each, and the choice of one.
type serverList struct {
	o   Options
	now func() time.Time // time.Now, or a test's clock, which jumps like that of a paused process

	mu       sync.Mutex
	servers  []string // the server in use is the first
	lastUsed string   // the last server to which a connection was opened; at first the first
	// listed are servers that the cluster has listed, in this run or before. excluded are addresses that are said to be
	// no servers.
	listed, excluded map[string]bool
	proofs           map[string]proof
	unready          map[string]unready // servers that are not ready for clients
	reason           string             // why no server could be used, as last logged; "" if one can
}

// newServerList reads the list that an earlier run has kept.
func newServerList(o Options) *serverList {
	l := &serverList{
		o: o, now: time.Now, servers: withoutDuplicates(append([]string{o.Server}, readList(o.File)...)), lastUsed: o.Server,
		listed: map[string]bool{}, excluded: map[string]bool{}, proofs: map[string]proof{}, unready: map[string]unready{},
	}
	l.servers = l.servers[:min(len(l.servers), maxServers)]
	for _, s := range l.servers {
		l.listed[s] = s != o.Server
	}
	return l
}

// proof is what is known of an address that has presented a server's certificate.
type proof struct {
	// provedAt is when the server last presented the certificate, or replied over a connection on which it had.
	provedAt time.Time
	// namedInCertificate means that the certificate names the address: no agent has forwarded the connection.
	namedInCertificate bool
	// closedSilently means that the server has closed a connection since then without having sent anything.
	closedSilently bool
	// discountedTime is how much of the time since provedAt does not count as unresponsive: this machine was late.
	discountedTime time.Duration
	// averageGap is the average time between two replies over the node's own connection. The latest ones count most.
	averageGap time.Duration
}

var errForwarded = errors.New("its certificate is not for this address: another program may forward connections there, perhaps to " +
	"this machine")

// Servers lists the known servers, the one in use first. Excluded ones are left out, unless no others are known.
func (l *serverList) Servers() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if left := slices.DeleteFunc(slices.Clone(l.servers), l.leftOut); len(left) > 0 {
		return left
	}
	return slices.Clone(l.servers)
}

// Set sets which servers the cluster has. Other known servers are kept behind them: one that is unresponsive now may be
// the only one that works when this machine starts again. Connections to such a server stay open. If it is dead, the
// probes show that.
func (l *serverList) Set(servers []string) error {
	l.mu.Lock()
	for _, s := range servers {
		l.listed[s] = true
		delete(l.excluded, s)
	}
	// These stay, whatever the number of listed servers: the one in use, the one that the operator named, and the
	// latest that were verified.
	kept := withoutDuplicates(slices.Concat([]string{l.servers[0], l.o.Server}, l.latestProofs(), servers, l.servers))
	kept = kept[:min(len(kept), maxServers)]
	gone := func(s string) bool { return !slices.Contains(kept, s) }
	// the server in use stays in use
	next := slices.DeleteFunc(withoutDuplicates(slices.Concat(l.servers[:1], servers, l.servers, kept)), gone)
	l.removeAddresses(gone)
	l.servers = next
	slices.Sort(kept) // so that nothing is written when only the server in use changes
	l.mu.Unlock()
	return atomicfile.WriteJSON(l.o.File, kept, 0o600)
}

// SetLastResort sets the addresses that are said to belong to agents and not to servers. The operator may have named
// one of them, since an agent forwards connections as long as it has a server. Such an address is used only if there is
// no other one. An address that has presented a server's certificate for itself is no agent, whatever other sources
// say.
func (l *serverList) SetLastResort(agents []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.excluded)
	for _, a := range agents {
		l.excluded[a] = true
	}
}

// Replied records that a server has replied over a connection of the node's on which it had presented its certificate.
// namedInCertificate means that the certificate names the address.
func (l *serverList) Replied(server string, namedInCertificate bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.proofs[server]
	if gap := l.now().Sub(p.provedAt); gap < maxGap {
		p.averageGap += (gap - cmp.Or(p.averageGap, gap)) / 8
		p.averageGap = cmp.Or(p.averageGap, gap)
	}
	p.namedInCertificate = namedInCertificate
	l.recordProof(server, p)
}

// recordSilentClose records that a server has closed a connection without having sent anything, as one does whose API
// server is stopping or has not started. It has to present its certificate before the next connection is opened. It
// still counts as responsive, and keeps its connections: a program on this machine that does not speak TLS causes this
// too.
func (l *serverList) recordSilentClose(server string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if p, ok := l.proofs[server]; ok {
		p.closedSilently = true
		l.proofs[server] = p
	}
}

// noteCertificate records that a server has presented its certificate in a handshake.
func (l *serverList) noteCertificate(server string, namedInCertificate bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.recordProof(server, proof{namedInCertificate: namedInCertificate, averageGap: l.proofs[server].averageGap})
}

// recordProof records a proof with the current time. The caller holds mu.
func (l *serverList) recordProof(server string, p proof) {
	if slices.Contains(l.servers, server) {
		p.provedAt, p.discountedTime = l.now(), 0
		l.proofs[server] = p
	}
}

// discountDelay makes the time from since until now, in which this machine was late, not count against any server.
func (l *serverList) discountDelay(since time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	for server, p := range l.proofs {
		if p.provedAt.IsZero() { // it was demoted
			continue
		}
		p.discountedTime = min(p.discountedTime+now.Sub(timers.Later(since, p.provedAt)), now.Sub(p.provedAt))
		l.proofs[server] = p
	}
}

// moveToFront moves a server to the front of the list.
func (l *serverList) moveToFront(server string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reason = ""
	if server != l.lastUsed {
		l.o.Logger.Info("the API is reached through another server", "server", server, "before", l.lastUsed)
		l.lastUsed = server
	}
	if i := slices.Index(l.servers, server); i > 0 {
		l.servers = slices.Insert(slices.Delete(l.servers, i, i+1), 0, server)
	}
	l.showReadiness()
}

// demote moves a server to the end of the list. Its last contact, a moment ago, does not count any more.
func (l *serverList) demote(server string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.servers, server); i >= 0 {
		l.servers = append(slices.Delete(l.servers, i, i+1), server)
	}
	if p, ok := l.proofs[server]; ok {
		l.proofs[server] = proof{namedInCertificate: p.namedInCertificate}
	}
}

// candidates returns all addresses in the order in which they are tried: responsive ones, those that are ready first,
// then those that presented a certificate for themselves before, then those that were only named, and last the excluded
// ones. So addresses that one source names in large numbers are tried late.
func (l *serverList) candidates() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	rank := func(s string) int {
		switch {
		case l.responsive(s, verifiedTTL) && l.ready(s):
			return 0
		case l.responsive(s, verifiedTTL):
			return 1
		case l.proofs[s].namedInCertificate:
			return 2
		case l.leftOut(s):
			return 4
		}
		return 3
	}
	out := slices.Clone(l.servers)
	slices.SortStableFunc(out, func(x, y string) int { return cmp.Compare(rank(x), rank(y)) })
	return out
}

func (l *serverList) namedServers() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(l.servers), func(s string) bool { return !l.listed[s] || l.leftOut(s) })
}

// otherReady returns another server than the given one that is ready and has just replied, or "". When there is one,
// connections to an unresponsive server are closed at once, without a second probe: that costs its clients a new
// connection, and waiting would cost them their requests.
func (l *serverList) otherReady(but string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.servers {
		if s != but && l.ready(s) && l.proofs[s].namedInCertificate && l.responsive(s, recentReply) {
			return s
		}
	}
	return ""
}

// lastContact reports whether a server replies over the node's own connection, or has just presented its certificate,
// and when it last did.
func (l *serverList) lastContact(server string) (yes bool, last time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.proofs[server]
	return l.responsive(server, max(responsiveWindow, p.averageGap+extraGap)+p.discountedTime), p.provedAt
}

// responsive reports whether the server's last proof is younger than within. The caller holds mu.
func (l *serverList) responsive(server string, within time.Duration) bool {
	p, ok := l.proofs[server]
	return ok && l.now().Sub(p.provedAt) < within
}

// recentlyVerified reports whether a server has proved a moment ago that it belongs to the cluster.
func (l *serverList) recentlyVerified(server string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.responsive(server, verifiedTTL) && !l.proofs[server].closedSilently
}

// leftOut reports whether an address is excluded and has not presented a certificate for itself. The caller holds mu.
func (l *serverList) leftOut(server string) bool {
	return l.excluded[server] && !l.proofs[server].namedInCertificate
}

// checkNamed returns an error for an address at which another program than the server itself presented its
// certificate.
func (l *serverList) checkNamed(server string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.proofs[server].namedInCertificate {
		return fmt.Errorf("%s: %w", server, errForwarded)
	}
	return nil
}

// everReached reports whether a server has presented its certificate in this run.
func (l *serverList) everReached() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.proofs) > 0
}

// latestProofs returns the addresses that have presented a certificate for themselves, the latest first, no more than
// maxVerified. The caller holds mu.
func (l *serverList) latestProofs() []string {
	out := slices.DeleteFunc(slices.Sorted(maps.Keys(l.proofs)), func(s string) bool { return !l.proofs[s].namedInCertificate })
	slices.SortStableFunc(out, func(x, y string) int { return l.proofs[y].provedAt.Compare(l.proofs[x].provedAt) })
	return out[:min(len(out), maxVerified)]
}

// removeAddresses removes what is known of addresses. The caller holds mu.
func (l *serverList) removeAddresses(gone func(string) bool) {
	maps.DeleteFunc(l.listed, func(s string, _ bool) bool { return gone(s) })
	maps.DeleteFunc(l.proofs, func(s string, _ proof) bool { return gone(s) })
	maps.DeleteFunc(l.unready, func(s string, _ unready) bool { return gone(s) })
}

// logUnusable logs that no server can be used, when the reason has changed.
func (l *serverList) logUnusable(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if text := err.Error(); text != l.reason {
		l.reason = text
		l.o.Logger.Warn("the API cannot be reached; retrying", "reason", err)
	}
	if refused, ok := errors.AsType[*protocol.RefusedCertificateError](err); ok {
		l.o.Part.Set(status.Degraded, "no server can be used, since this machine refuses their certificates: "+refused.Reason+
			". Pods keep running. Check the clocks; `coracle status` on a server says which of its certificates have to be renewed")
	}
}

// readList returns the list that an earlier run has kept. It returns nothing if the file is missing or damaged.
func readList(file string) (kept []string) {
	f, err := os.Open(file)
	if err != nil {
		return nil
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil || len(data) > maxFileBytes || json.Unmarshal(data, &kept) != nil {
		return nil
	}
	return kept[:min(len(kept), maxServers)]
}

func withoutDuplicates(in []string) []string {
	var out []string
	for _, s := range in {
		if s != "" && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}
