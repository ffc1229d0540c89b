// SPDX-License-Identifier: Apache-2.0

// Coracle-tools is kubectl and ctr in one program, carried inside coracle so that neither is in the server's memory.
// The name it is called by, or its first argument, picks the command. It changes upstream's commands only in where
// they look by default: kubectl for coracle's admin kubeconfig, ctr for coracle's containerd.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	ctr "github.com/containerd/containerd/v2/cmd/ctr/app"
	"github.com/urfave/cli/v3"
	_ "k8s.io/client-go/plugin/pkg/client/auth" // kubeconfigs of other clusters may name these
	componentcli "k8s.io/component-base/cli"
	"k8s.io/component-base/logs"
	kubectl "k8s.io/kubectl/pkg/cmd"
	cmdutil "k8s.io/kubectl/pkg/cmd/util"
)

var tools = map[string]func() int{
	"kubectl": runKubectl,
	"ctr":     runCtr,
}

func main() {
	run, args := pick(os.Args)
	if run == nil {
		fmt.Fprintln(os.Stderr, "usage: coracle-tools kubectl|ctr [arguments]")
		os.Exit(2)
	}
	os.Args = args
	os.Exit(run())
}

// pick returns the tool that args call for and the arguments it is to see, its own name first.
func pick(args []string) (func() int, []string) {
	for i := 0; i < len(args) && i < 2; i++ {
		name := filepath.Base(args[i])
		if run, ok := tools[name]; ok {
			return run, append([]string{name}, args[i+1:]...)
		}
	}
	return nil, nil
}

func runKubectl() int {
	hint := defaultKubeconfig(os.Args[1:])
	// kubectl ends the process itself on most errors; the hint has to come out on that path too.
	cmdutil.BehaviorOnFatal(func(msg string, code int) {
		printFatal(os.Stderr, msg, hint)
		os.Exit(code)
	})
	// As in upstream's main: the verbosity counts already while the command tree is built.
	_, _ = logs.GlogSetter(kubectl.GetLogVerbosity(os.Args))
	if err := componentcli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
		cmdutil.CheckErr(err)
	}
	return 0
}

func printFatal(w io.Writer, msg, hint string) {
	for _, text := range []string{msg, hint} {
		if text == "" {
			continue
		}
		fmt.Fprint(w, text)
		if text[len(text)-1] != '\n' {
			fmt.Fprintln(w)
		}
	}
}

func runCtr() int {
	app := ctr.New()
	defaultCtrFlags(app.Flags)
	if err := app.Run(context.Background(), os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "ctr:", err)
		return 1
	}
	return 0
}

// defaultCtrFlags points ctr at coracle's containerd and at the namespace that pods live in.
func defaultCtrFlags(flags []cli.Flag) {
	for _, flag := range flags {
		f, ok := flag.(*cli.StringFlag)
		if !ok {
			continue
		}
		switch f.Name {
		case "address":
			f.Value = filepath.Join(runDir(), "containerd", "containerd.sock")
		case "namespace":
			f.Value = "k8s.io"
		}
	}
}
