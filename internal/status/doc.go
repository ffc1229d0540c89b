// SPDX-License-Identifier: Apache-2.0

// Package status reports the state of a coracle process: which of its parts run, since when, and what is wrong, with a
// hint for the user.
//
// It owns the [Board] on which the parts report their states and the report that is made of it. It also owns the HTTP
// server for that report, on a unix socket below the run directory, and the client of that socket. Only root can
// connect to the socket.
//
// It never starts, stops or checks a part by itself. Parts report their states, and a report is only as recent as the
// states.
//
// Its goroutines: one that serves the socket.
package status
