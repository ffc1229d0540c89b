// SPDX-License-Identifier: Apache-2.0

package cleanup

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/coracle-k8s/coracle/internal/config"
)

// exitKept is the exit code when everything of coracle's own is removed and something else was kept. Standard output
// names what was kept.
const exitKept = 3

// Main runs the command that coracle's own cleanup command starts with the folders of its settings. It returns the exit
// code: 0 when nothing is left, 3 when only things are left that are not coracle's to remove, 1 when a step failed or
// the user is not root, 2 when a folder is no absolute path.
func Main(args []string) int {
	f := flag.NewFlagSet("cleanup", flag.ExitOnError)
	dataDir := f.String("data-dir", config.DefaultDataDir, "folder that holds all lasting state")
	runDir := f.String("run-dir", "", "folder for sockets (default: the one that goes with the data folder)")
	kubeconfig := f.String("kubeconfig", "", "the administrator's kubeconfig, removed with the data")
	grace := f.Duration("grace", 10*time.Second, "how long containers may take to end")
	removeData := f.Bool("remove-data", false, "remove the data, logs and the kubeconfig too")
	_ = f.Parse(args) // exits on an error
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "cleanup: has to run as root; use sudo")
		return 1
	}
	for _, dir := range []*string{dataDir, runDir} {
		if *dir != "" && !filepath.IsAbs(*dir) {
			fmt.Fprintf(os.Stderr, "cleanup: %s is not an absolute path\n", *dir)
			return 2
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	kept, err := Run(ctx, Options{
		Paths: config.NewPaths(filepath.Clean(*dataDir), *runDir), Kubeconfig: *kubeconfig, Grace: *grace, RemoveData: *removeData,
		Progress: os.Stderr,
	})
	for _, k := range kept {
		fmt.Printf("%s was kept: %s\n", k.Path, k.Why)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "cleanup: not everything could be removed:\n%v\n", err)
		return 1
	}
	if len(kept) > 0 {
		return exitKept
	}
	return 0
}
