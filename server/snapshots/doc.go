// SPDX-License-Identifier: Apache-2.0

// Package snapshots saves the whole cluster to one encrypted file, by schedule or on request, and rebuilds a server's
// folder from such a file.
//
// It owns the file format, the folder with this server's files, and the choice of files to remove. The contents of a
// file come from others: the state from raftstore, the files that all servers have in common from package server. It
// never deletes a server's folder: the folder that a restore replaces is kept under another name.
package snapshots
