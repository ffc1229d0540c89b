// SPDX-License-Identifier: Apache-2.0

package vip

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// shouter is a responder with a clock and a network of the test's.
type shouter struct {
	*responder
	clock     Moment
	sent      int
	confirmed int
	fail      error
	other     []net.HardwareAddr
}

func newShouter() *shouter {
	s := &shouter{clock: 1000}
	s.responder = &responder{n: four, defendedAt: map[hw]Moment{}, now: func() Moment { return s.clock }, send: func([]byte) error { s.sent++; return nil }, a: Announcement{
		Address: v4, Logger: slog.New(slog.DiscardHandler),
		Confirm: func(context.Context) (Moment, error) {
			s.confirmed++
			return s.clock.After(time.Second), s.fail
		},
		Conflict: func(o net.HardwareAddr) { s.other = append(s.other, o) },
	}}
	return s
}

var question = arp{op: opRequest, senderHW: other, sender: peer4, target: v4}.frame(broadcast)

// TestAnswersAreConfirmed: nothing is sent without a permission that has not run out, and it is asked for only when
// a machine asks.
func TestAnswersAreConfirmed(t *testing.T) {
	s, ctx := newShouter(), t.Context()
	check := func(what string, sent, confirmed int) {
		t.Helper()
		if s.sent != sent || s.confirmed != confirmed {
			t.Errorf("%s: %d frames sent, %d times confirmed; want %d, %d", what, s.sent, s.confirmed, sent, confirmed)
		}
	}
	s.hear(ctx, question)
	check("the first question", 1, 1)
	s.clock = s.clock.After(999 * time.Millisecond)
	s.hear(ctx, question)
	check("within the permission", 2, 1)
	s.clock = s.clock.After(time.Millisecond)
	s.hear(ctx, question)
	check("when it has run out", 3, 2)
	s.fail, s.clock = errors.New("another server leads"), s.clock.After(time.Hour)
	s.hear(ctx, question)
	check("when another one has it", 3, 3)
	for range 100 {
		s.hear(ctx, question)
	}
	check("and at once again", 3, 3)
	s.fail, s.clock = nil, s.clock.After(confirmPause)
	s.hear(ctx, question)
	check("when it may again", 4, 4)
}

// TestPausedMachineSendsNothingAfterwards: a machine that is paused at any place, while it confirms or between two
// frames, sends nothing when it wakes.
func TestPausedMachineSendsNothingAfterwards(t *testing.T) {
	s, ctx := newShouter(), t.Context()
	s.a.Confirm = func(context.Context) (Moment, error) {
		until := s.clock.After(time.Second)
		s.clock = s.clock.After(time.Minute) // paused before the answer was looked at
		return until, nil
	}
	s.hear(ctx, question)
	testenv.Equal(t, s.sent, 0, "it answered when it woke:")
	s = newShouter()
	s.responder.send = func([]byte) error { s.sent++; s.clock = s.clock.After(time.Minute); return nil }
	s.transmit(ctx, four.announcements()...)
	testenv.Equal(t, s.sent, 1, "frames were sent, of which all but the first after waking:")
}

// TestConfirmIsBounded: a question that no machine answers holds up the others for half a second.
func TestConfirmIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShouter()
		s.a.Confirm = func(ctx context.Context) (Moment, error) { <-ctx.Done(); return 0, ctx.Err() }
		began := time.Now()
		s.hear(t.Context(), question)
		if took := time.Since(began); took != confirmTimeout || s.sent != 0 {
			t.Errorf("%d frames after %v", s.sent, took)
		}
	})
}

// TestConflictIsDefendedWithinRFC5227sLimit: another machine's claims are reported and answered, but not more often
// than RFC 5227 allows.
func TestConflictIsDefendedWithinRFC5227sLimit(t *testing.T) {
	s, ctx := newShouter(), t.Context()
	claim := arp{op: opReply, senderHW: other, sender: v4, targetHW: own, target: peer4}.frame(own)
	for range 100 {
		s.hear(ctx, claim)
		s.clock = s.clock.After(time.Second)
	}
	if len(s.other) != 10 || s.other[0].String() != "02:00:00:00:00:02" || s.sent != 10*len(four.announcements()) {
		t.Errorf("reported %v, %d frames", s.other, s.sent)
	}
}

// TestClaimsOfManyMachinesAreBounded: a claim that could not be answered, and one machine's claim, keep no other claim
// from an answer. Who invents machines does not get an answer for each.
func TestClaimsOfManyMachinesAreBounded(t *testing.T) {
	s, ctx := newShouter(), t.Context()
	claim := func(n byte) {
		who := other
		who[5] = n
		s.hear(ctx, arp{op: opReply, senderHW: who, sender: v4, targetHW: own, target: peer4}.frame(own))
	}
	each := len(four.announcements())
	s.fail = errors.New("another server leads")
	claim(7)
	s.fail, s.clock = nil, s.clock.After(confirmPause)
	claim(7)
	testenv.Require(t, len(s.other) == 1 && s.sent == each,
		"a claim that could not be answered at first: reported %v, %d frames", s.other, s.sent)
	claim(8)
	testenv.Require(t, len(s.other) == 2 && s.sent == 2*each, "a second machine's claim: reported %v, %d frames", s.other, s.sent)
	for n := range 100 {
		claim(byte(100 + n))
	}
	if len(s.other) != maxClaimants || s.sent != maxClaimants*each {
		t.Errorf("102 machines' claims: reported %d, %d frames; want %d", len(s.other), s.sent, maxClaimants)
	}
	s.clock = s.clock.After(defendEvery)
	claim(8)
	testenv.Equal(t, len(s.other), maxClaimants+1, "after a while: reported")
}

func TestAnnouncementsAreRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShouter()
		s.announce(t.Context())
		if want := len(announceAt) * len(four.announcements()); s.sent != want {
			t.Errorf("%d frames, want %d", s.sent, want)
		}
	})
}

// The clock goes on, and is not the time of day.
func TestClockIsMonotonic(t *testing.T) {
	if a, b := Now(), Now(); a <= 0 || b < a || b.After(time.Second) <= a {
		t.Errorf("%d, then %d", a, b)
	}
}
