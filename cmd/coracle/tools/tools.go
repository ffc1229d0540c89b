// SPDX-License-Identifier: Apache-2.0

// Package tools is what a process of coracle can become: kubectl, ctr and helm, which are unmodified upstream code, the
// child process of the controller of Helm charts, and the cleaning of a host.
package tools

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"

	ctr "github.com/containerd/containerd/v2/cmd/ctr/app"
	"github.com/containerd/containerd/v2/version"
	helm "helm.sh/helm/v4/pkg/cmd"
	"helm.sh/helm/v4/pkg/kube"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // kubeconfigs of other clusters may name these
	"k8s.io/component-base/cli"
	"k8s.io/component-base/featuregate"
	"k8s.io/component-base/logs"
	kubectl "k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
	_ "k8s.io/kubernetes/pkg/features" // it makes the client library's features those of the API server

	"github.com/coracle-k8s/coracle/cmd/coracle/tools/cleanup"
	"github.com/coracle-k8s/coracle/cmd/coracle/tools/helmchild"
)

var tools = map[string]func(){
	"kubectl": runKubectl,
	"ctr":     runCtr,
	"helm":    runHelm,
	"cleanup": func() { os.Exit(cleanup.Main(os.Args[1:])) },
}

// Run makes this process the tool of that name, with args and the environment variables env, and ends it with the
// tool's exit code.
func Run(name string, args, env []string) {
	os.Clearenv()
	for _, kv := range env {
		key, value, _ := strings.Cut(kv, "=")
		_ = os.Setenv(key, value) // it fails only without a name
		setClientFeature(key, value)
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(100) // Go's own: a tool ends soon
	}
	os.Args = append([]string{name}, args...) // the commands read their arguments there
	tools[name]()
	os.Exit(0)
}

// setClientFeature does for a variable KUBE_FEATURE_NAME what upstream's client library does by itself in a process
// without the API server's features.
func setClientFeature(key, value string) {
	name, ok := strings.CutPrefix(key, "KUBE_FEATURE_")
	if !ok {
		return
	}
	gates := utilfeature.DefaultMutableFeatureGate
	if _, known := gates.GetAll()[featuregate.Feature(name)]; !known {
		return
	}
	if err := gates.Set(name + "=" + value); err != nil {
		fmt.Fprintf(os.Stderr, "the variable %s has no effect: %v\n", key, err)
	}
}

// RunHelmJob makes this process the child process of the controller of Helm charts, which ends when its job is done.
func RunHelmJob() { os.Exit(helmchild.Main()) }

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
