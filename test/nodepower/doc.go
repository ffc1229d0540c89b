// SPDX-License-Identifier: Apache-2.0

// Package nodepower cuts the power of whole nodes, again and again, and checks after each boot that all of a node's
// pods run again by themselves, that what was unpacked is whole, and that volumes kept what was flushed.
//
// The machine is one of test/harness, so containerd, runc and pods are real, and the kernel is the host's. Its data
// directory is ext4 on a loop device over a file of this package's own (FUSE), whose content is a powercut.Disk: what
// no flush covered when the power goes is there in part, sector by sector, as the seed decides. The kernel's memory
// goes as well, since the disk refuses everything from that moment on.
//
// The file is served by a child process in a mount namespace of its own. So nothing of it stays mounted on the host,
// and no thread of the tests waits for a file that the tests serve.
package nodepower
