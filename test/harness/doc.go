// SPDX-License-Identifier: Apache-2.0

// Package harness makes a machine for a scenario out of namespaces and runs real coracle processes on it.
//
// A Machine owns a pid, mount, network and cgroup namespace of its own, and folders of its own wherever coracle writes.
// Its one link leads to a Site, a network that leads nowhere and that several machines can share. Whatever a scenario
// leaves behind ends with the namespaces, so nothing meets the next run and no port clashes. The harness never touches
// cgroups, interfaces, mounts or processes that it did not make. It needs root.
package harness
