// SPDX-License-Identifier: Apache-2.0

// Package upgrade shows that a version can be taken back: clusters of real processes (test/harness) whose program is
// exchanged for another version's and back, under load, and a directory that an earlier version wrote.
//
// Some lose their power: what a machine has of versions is on a disk of this package's own (FUSE), in memory, which
// forgets what was not synced, and fails where a scenario wants it to.
//
// The scenarios have the build tag e2e. `make compat` has those of one server, `make e2e-upgrade` all of them. Both are
// given the other version as OLDER, and build a program of two levels (internal/level).
package upgrade
