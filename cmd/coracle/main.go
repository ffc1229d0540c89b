// SPDX-License-Identifier: Apache-2.0

// Command coracle is Kubernetes in one binary.
package main

import (
	"context"
	"os"
	"runtime/debug"

	"github.com/spf13/pflag"

	"github.com/coracle-k8s/coracle/agent/kubelet"
	"github.com/coracle-k8s/coracle/cmd/coracle/argv"
	"github.com/coracle-k8s/coracle/cmd/coracle/cli"
	"github.com/coracle-k8s/coracle/cmd/coracle/workqueuemetrics"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/embedded"
	"github.com/coracle-k8s/coracle/server"
	"github.com/coracle-k8s/coracle/server/secrets"
)

// gcPercent trades some CPU for memory while the process is at rest: boards have less of the latter. Under load, which
// a start is too, it is Go's own default as long as the heap is small (memory.Pacer). In a control group with little
// memory less piles up. At a start some 4 MB live, and 32 MB of garbage may pile up before the first collection: with
// less, Go would look at what lives four times on the way, and with twice as much the start takes as long and 5 MB more
// stay. GOGC in the environment overrides all.
const (
	gcPercentStart     = 800
	gcPercent          = 25
	gcPercentBusy      = 100
	gcPercentTight     = 15
	gcPercentTightBusy = 30
)

func main() {
	os.Args = argv.Hide(os.Args)
	environ := os.Environ() // before anything of it is changed
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	// Upstream's packages register flags of theirs in the process-wide set when they are linked in, and cobra mixes
	// that set into every command: `coracle --version` would be theirs.
	pflag.CommandLine = pflag.NewFlagSet(os.Args[0], pflag.ContinueOnError)
	workqueuemetrics.Disable() // docs/adr/0040-idle-cost.md
	app := &cli.App{
		RunServer:        runServer,
		RunAgent:         runAgent,
		CheckServerArgs:  checkServerArgs,
		CheckKubeletArgs: kubelet.CheckArgs,
		Unpack:           unpack,
		Libraries:        libraryVersions,
		Encryption:       keys{},
		SnapshotFiles:    server.SnapshotFiles,
		TokenFiles:       secrets.TokenFiles,
		RotateGossipKey:  rotateGossipKey,
		RotateToken:      rotateToken,
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

func unpack(dataDir string) (string, error) {
	dir, err := embedded.Unpack(dataDir)
	return dir.Path, err
}
