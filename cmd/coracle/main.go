// SPDX-License-Identifier: Apache-2.0

// Command coracle is Kubernetes in one binary.
//
// Its goroutines: signals; the server; an agent's list of servers; the announcement of readiness; what follows the keys
// of the gossip and feeds the balancer; the machine's addresses, woken by the kernel.
package main

import (
	"context"
	"os"
	"runtime/debug"

	"github.com/spf13/pflag"

	"github.com/coracle-k8s/coracle/agent/kubelet"
	"github.com/coracle-k8s/coracle/cmd/coracle/argv"
	"github.com/coracle-k8s/coracle/cmd/coracle/cli"
	"github.com/coracle-k8s/coracle/cmd/coracle/tools"
	_ "github.com/coracle-k8s/coracle/cmd/coracle/tools/translations" // for what it does when it is initialized
	"github.com/coracle-k8s/coracle/cmd/coracle/workqueuemetrics"
	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/server"
	"github.com/coracle-k8s/coracle/server/secrets"
)

// gcPercent is the value of GOGC while the process is at rest. It trades CPU time for memory, because small boards have
// little memory. Under load, also while a start goes on, the value is Go's own default as long as the heap is small
// (memory.Pacer). In a control group with little memory, the values are lower. gcPercentStart is the value up to the
// first collection. At a start some 4 MB are live, and 32 MB of garbage may pile up. With a lower value, Go would
// collect four times on the way. With twice as much garbage, the start takes as long, and 5 MB more stay allocated.
// GOGC in the environment overrides all of these.
const (
	gcPercentStart     = 800
	gcPercent          = 25
	gcPercentBusy      = 100
	gcPercentTight     = 15
	gcPercentTightBusy = 30
)

func main() {
	if os.Args[0] == helmjob.Name {
		tools.RunHelmJob()
	}
	os.Args = argv.Hide(os.Args)
	environ := os.Environ() // before any variable is changed
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	// Upstream's packages register flags in the process-wide set when they are linked in. Cobra adds that set to every
	// command: `coracle --version` would be upstream's flag.
	pflag.CommandLine = pflag.NewFlagSet(os.Args[0], pflag.ContinueOnError)
	workqueuemetrics.Disable() // docs/adr/0040-idle-cost.md
	app := &cli.App{
		RunServer:        runServer,
		RunAgent:         runAgent,
		CheckServerArgs:  checkServerArgs,
		CheckKubeletArgs: kubelet.CheckArgs,
		Emulate:          emulate,
		Become:           tools.Run,
		Libraries:        libraryVersions,
		Encryption:       keys{},
		SnapshotFiles:    server.SnapshotFiles,
		TokenFiles:       secrets.TokenFiles,
		RotateGossipKey:  rotateGossipKey,
		RotateToken:      rotateToken,
		RevokeNode:       revokeNode,
		Restart:          func() error { return restartProcess(environ) },
		CheckVIPs:        checkNewVIPs,
		CheckHost:        checkHost,
		Stdin:            os.Stdin,
		Stdout:           os.Stdout,
		Stderr:           os.Stderr,
		Environ:          environ,
		Host:             config.LocalHost{},
	}
	os.Exit(app.Main(context.Background(), os.Args))
}
