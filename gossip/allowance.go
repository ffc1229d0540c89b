// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"maps"
	"net/netip"
	"time"

	"golang.org/x/time/rate"
)

const (
	// answersPerSecond and answersAtOnce limit a machine's replies to all others. senderPerSecond and senderAtOnce
	// limit its replies to one of them: so a member that repeats others' questions does not keep those from their
	// replies.
	answersPerSecond, answersAtOnce = 4, 16
	senderPerSecond, senderAtOnce   = 0.5, 4
	// maxSenders is how many senders are remembered. Replies to further senders are only limited together with all
	// others.
	maxSenders = 256
)

// allowance limits replies. Its caller serializes the calls.
type allowance struct {
	total   *rate.Limiter
	senders map[netip.Addr]*rate.Limiter // those that have spent something
}

func newAllowance() allowance {
	return allowance{total: rate.NewLimiter(answersPerSecond, answersAtOnce), senders: map[netip.Addr]*rate.Limiter{}}
}

// allow reports whether one more reply may be sent to a sender, and counts it.
func (a *allowance) allow(from netip.Addr, now time.Time) bool {
	maps.DeleteFunc(a.senders, func(_ netip.Addr, l *rate.Limiter) bool { return l.TokensAt(now) >= senderAtOnce })
	sender := a.senders[from]
	if sender == nil {
		sender = rate.NewLimiter(senderPerSecond, senderAtOnce)
		if len(a.senders) < maxSenders {
			a.senders[from] = sender
		}
	}
	return sender.TokensAt(now) >= 1 && a.total.AllowN(now, 1) && sender.AllowN(now, 1)
}
