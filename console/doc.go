// SPDX-License-Identifier: Apache-2.0

// Package console serves the web console: its pages, and restricted access to the Kubernetes API for their users.
//
// It uses only the user's own credentials: it has no account, impersonates no user, and keeps no data of one request
// for another. `coracle console` serves it on a port of 127.0.0.1 with the credentials of a kubeconfig. A tab of the
// browser has one WebSocket, in which its lists, logs and shells are numbered streams: browsers allow six connections
// to a host, and a watch by a browser's WebSocket could not request a table.
//
// It makes no authorization decisions: the API does. It uses no cookies, so that no other site can act for the user.
//
// Its goroutines: the HTTP server; two for each tab, two for each of its streams, three for a shell; four more for a
// search, a check of the overview and a list of releases; three for each forwarded port, which read its pod every five
// seconds, and up to four for each of its connections; two child processes at most for changes of releases; the first
// use of a context takes one as long as its login program does, which cannot be cancelled.
package console
