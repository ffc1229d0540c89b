// SPDX-License-Identifier: Apache-2.0

// Coracle-tools is kubectl, ctr, helm, the child process of the controller of Helm charts and the cleaning of a host in
// one program. It is embedded inside coracle, so that none of these is in the server's memory. The name by which it is
// called, or its first argument, selects the command. kubectl, ctr and helm are unmodified upstream code. Coracle
// starts this program, and sets environment variables that say which cluster and which containerd to use.
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
	os.Args = args // the commands read their arguments there
	run()
}

// pick returns the tool that args select and its arguments, its own name first.
func pick(args []string) (func(), []string) {
	for i := 0; i < len(args) && i < 2; i++ {
		name := filepath.Base(args[i])
		if run, ok := tools[name]; ok {
			return run, append([]string{name}, args[i+1:]...)
		}
	}
	return nil, nil
}

// runKubectl does what the main function of upstream's kubectl does.
func runKubectl() {
	// The verbosity is already used while the command tree is built. A bad value is reported when the flags are parsed.
	_, _ = logs.GlogSetter(kubectl.GetLogVerbosity(os.Args))
	if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
		util.CheckErr(err)
	}
}

func runCtr() {
	version.Version = strings.TrimSuffix(version.Version, "+unknown") // a build without the linker's version has this suffix
	if err := ctr.New().Run(context.Background(), os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "ctr:", err)
		os.Exit(1)
	}
}

// runHelm does what the main function of upstream's helm does.
func runHelm() {
	kube.ManagedFieldsManager = "helm" // independent of this program's name
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
