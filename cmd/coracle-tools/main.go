// SPDX-License-Identifier: Apache-2.0

// Coracle-tools is kubectl, ctr, helm, the work of the controller of Helm charts and the cleaning of a host in one
// program, embedded inside coracle so that none is in the server's memory. The name it is called by, or its first
// argument, picks the command. kubectl, ctr and helm are upstream's as they are: coracle, which starts this program,
// says in the environment which cluster and which containerd to use.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	ctr "github.com/containerd/containerd/v2/cmd/ctr/app"
	"github.com/containerd/containerd/v2/version"
	helm "helm.sh/helm/v4/pkg/cmd"
	"helm.sh/helm/v4/pkg/kube"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // kubeconfigs of other clusters may name these
	"k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	kubectl "k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"

	"github.com/coracle-k8s/coracle/cmd/coracle-tools/cleanup"
	"github.com/coracle-k8s/coracle/cmd/coracle-tools/helmjob"
	job "github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
)

var tools = map[string]func(){
	"kubectl": runKubectl,
	"ctr":     runCtr,
	"helm":    runHelm,
	job.Name:  func() { os.Exit(helmjob.Main()) },
	"cleanup": func() { os.Exit(cleanup.Main(os.Args[1:])) },
}

func main() {
	run, args := pick(os.Args)
	if run == nil {
		fmt.Fprintln(os.Stderr, "usage: coracle-tools kubectl|ctr|helm|helmjob|cleanup [arguments]")
		os.Exit(2)
	}
	os.Args = args // both commands read them there
	run()
}

// pick returns the tool that args call for and the arguments it is to see, its own name first.
func pick(args []string) (func(), []string) {
	for i := 0; i < len(args) && i < 2; i++ {
		name := filepath.Base(args[i])
		if run, ok := tools[name]; ok {
			return run, append([]string{name}, args[i+1:]...)
		}
	}
	return nil, nil
}

// runKubectl does what upstream's main does.
func runKubectl() {
	// The verbosity counts already while the command tree is built. A bad value is reported when the flags are parsed.
	_, _ = logs.GlogSetter(kubectl.GetLogVerbosity(os.Args))
	if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
		util.CheckErr(err)
	}
}

func runCtr() {
	version.Version = strings.TrimSuffix(version.Version, "+unknown") // of a build without the linker's version
	if err := ctr.New().Run(context.Background(), os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "ctr:", err)
		os.Exit(1)
	}
}

// runHelm does what upstream's main does.
func runHelm() {
	kube.ManagedFieldsManager = "helm" // whatever this program is called
	cmd, err := helm.NewRootCmd(os.Stdout, os.Args[1:], helm.SetupLogging)
	if err != nil {
		slog.Warn("command failed", slog.Any("error", err))
		os.Exit(1)
	}
	err = cmd.Execute()
	var status helm.CommandError
	switch {
	case errors.As(err, &status):
		os.Exit(status.ExitCode)
	case err != nil:
		os.Exit(1)
	}
}
