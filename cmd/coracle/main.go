// SPDX-License-Identifier: Apache-2.0

// Command coracle is Kubernetes in one binary.
package main

import (
	"context"
	"os"
	"runtime/debug"

	"github.com/coracle-k8s/coracle/cmd/coracle/cli"
	"github.com/coracle-k8s/coracle/internal/carried"
	"github.com/coracle-k8s/coracle/internal/check"
	"github.com/coracle-k8s/coracle/internal/config"
)

// gcPercent trades some CPU for memory: boards have less of the latter. GOGC in the environment overrides it.
const gcPercent = 25

func main() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	app := &cli.App{
		RunServer:  runServer,
		Unpack:     unpack,
		Encryption: keys{},
		CheckHost:  check.LocalHost,
		Stdin:      os.Stdin,
		Stdout:     os.Stdout,
		Stderr:     os.Stderr,
		Environ:    os.Environ(),
		Host:       config.LocalHost{},
	}
	os.Exit(app.Main(context.Background(), os.Args))
}

func unpack(dataDir string) (string, error) {
	dir, err := carried.Unpack(dataDir)
	return dir.Path, err
}
