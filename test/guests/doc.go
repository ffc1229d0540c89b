// SPDX-License-Identifier: Apache-2.0

// Package guests has the scenarios of whole nodes, with containers and all, on machines whose kernel has what the
// kernel of a test machine may lack: IPVS, and NFS. The machines are User-Mode Linux on a site of test/harness. They
// are slow, a system call takes ten times as long as elsewhere, so make guest-nodes runs this, and make e2e does not.
package guests

import _ "embed" // for machine.sh

// MachineScript is the first process of such a machine.
//
//go:embed machine.sh
var MachineScript string
