// SPDX-License-Identifier: Apache-2.0

// Package status says what a coracle process is doing: which of its parts run, since when, and what is wrong, in
// words that tell a person what to do.
//
// It owns the [Board] that the parts write their state on, the report made of it, the HTTP face of that report on a
// unix socket below the run directory, and the client that asks there. Only root reaches the socket.
//
// It never starts, stops or checks a part by itself: parts report, and a report is only as fresh as they keep it.
package status
