// SPDX-License-Identifier: Apache-2.0

// Package cli holds the commands of coracle: it parses the command line, prints, and decides the exit code.
//
// It owns the words that users type and read. It owns the process around a server or an agent (log, pid file, admin
// socket, signals, readiness), and nothing of what runs inside. Main gives it the functions that run a server and an
// agent. So neither this package nor the tests of the command line link Kubernetes.
//
// Exit codes: 0 for success, 1 when something failed, 2 when the command line or the configuration is wrong. coracle
// leave has a further one (exitStillMember).
//
// Its goroutines: the admin socket; signals; the note of the time; what holds libraries' log lines back at start and
// stop; for single commands a question to each server, and reads from a terminal or of a login program, which cannot be
// cancelled and end with the process.
package cli
