// SPDX-License-Identifier: Apache-2.0

// Package console serves the web console: its pages, and restricted access to the Kubernetes API for their users.
//
// It uses only the user's own credentials: it has no account, impersonates no user, and keeps no data of one request
// for another. `coracle console` serves it on a port of 127.0.0.1 with the credentials of a kubeconfig. A tab of the
// browser has one WebSocket, in which its lists, logs and shells are numbered streams: browsers allow six connections
// to a host, and a watch by a browser's WebSocket could not request a table.
//
// It makes no authorization decisions: the API does. It uses no cookies, so that no other site can act for the user.
package console
