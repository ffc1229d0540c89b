// SPDX-License-Identifier: Apache-2.0

// Package snapshots saves the whole cluster to one encrypted file, by schedule or when asked, and makes a server's
// folder from such a file again.
//
// It owns the form of the file, the folder with the files of this server, and which of them are removed. What is in a
// file it gets from others: the state from raftstore, the files that all servers have in common from package server.
// It never deletes a server's folder: what restoring replaces is kept under another name.
package snapshots
