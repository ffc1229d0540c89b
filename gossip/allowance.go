// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"maps"
	"net/netip"
	"time"
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

// bucket is a token bucket that limits replies. The zero bucket is full.
type bucket struct {
	spent float64 // at the time at
	at    time.Time
}

// now returns the bucket's state at a moment.
func (b bucket) now(now time.Time, perSecond float64) bucket {
	return bucket{max(0, b.spent-now.Sub(b.at).Seconds()*perSecond), now}
}

// allowance limits replies.
type allowance struct {
	all     bucket
	senders map[netip.Addr]bucket
}

// allow reports whether one more reply may be sent to a sender, and counts it.
func (a *allowance) allow(from netip.Addr, now time.Time) bool {
	maps.DeleteFunc(a.senders, func(_ netip.Addr, b bucket) bool { return b.now(now, senderPerSecond).spent == 0 })
	all, own := a.all.now(now, answersPerSecond), a.senders[from].now(now, senderPerSecond)
	if all.spent+1 > answersAtOnce || own.spent+1 > senderAtOnce {
		return false
	}
	all.spent++
	own.spent++
	a.all = all
	if a.senders == nil {
		a.senders = map[netip.Addr]bucket{}
	}
	if _, known := a.senders[from]; known || len(a.senders) < maxSenders {
		a.senders[from] = own
	}
	return true
}
