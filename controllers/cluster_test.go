// SPDX-License-Identifier: Apache-2.0

package controllers_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/kubernetes/pkg/volume"

	"github.com/coracle-k8s/coracle/controllers/term"
	"github.com/coracle-k8s/coracle/scheduler"
	"github.com/coracle-k8s/coracle/test/testapi"
)

// cluster is testapi's API server, which all tests share: they keep to namespaces of their own.
type cluster struct {
	dir    string
	config *rest.Config
	client kubernetes.Interface
	// plugins, when set, are those of the next term.
	plugins func(context.Context, *term.Term) ([]volume.VolumePlugin, error)
	// refusals, when set, are what the next term's scheduler gets.
	refusals scheduler.Refusals
}

var shared *cluster

// quiet logs nothing of what is not under test.
var quiet = slog.New(slog.DiscardHandler)

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "controllers-test-")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		_, config, stop, err := testapi.Start(dir)
		if err != nil {
			fmt.Fprintln(os.Stderr, "start the API server:", err)
			return 1
		}
		defer func() {
			if err := stop(); err != nil {
				fmt.Fprintln(os.Stderr, "stop the API server:", err)
			}
		}()
		shared = &cluster{dir: dir, config: config, client: kubernetes.NewForConfigOrDie(config)}
		return m.Run()
	}())
}

func (c *cluster) path(name string) string { return filepath.Join(c.dir, name) }
