// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	"k8s.io/klog/v2"

	"github.com/coracle-k8s/coracle/internal/embedded"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// faultEnv makes this test binary coracle, with a plugin of containerd that ends the process in the named way.
const faultEnv = "CORACLE_TEST_PLUGIN_FAULT"

func TestMain(m *testing.M) {
	if fault := os.Getenv(faultEnv); fault != "" {
		registry.Register(&plugin.Registration{
			Type: plugins.ServicePlugin, ID: "coracle-test-fault",
			InitFn: func(*plugin.InitContext) (any, error) { return endProcess(fault) },
		})
		main()
	}
	harness.Main(m)
}

func endProcess(fault string) (any, error) {
	switch fault {
	case "exit":
		os.Exit(7)
	case "klog.Fatal":
		go klog.Fatal("this library gives up")
		select {}
	}
	panic("this plugin is damaged")
}

// TestPluginThatEndsTheProcess: a library in the node ends the process once. The next start serves store and API, and
// the status says why the node is off.
func TestPluginThatEndsTheProcess(t *testing.T) {
	testenv.RequireRoot(t, "namespaces")
	if _, err := embedded.Unpack(t.TempDir()); err != nil {
		testenv.Missing(t, testenv.Embedded, "make embedded has not run in this tree")
	}
	t.Setenv("CORACLE_BIN", testenv.Must(os.Executable())(t))
	for fault, want := range map[string]string{
		"panic": "this plugin is damaged", "exit": "was killed or exited", "klog.Fatal": "klog.Fatal",
	} {
		t.Run(fault, func(t *testing.T) {
			m := harness.NewMachine(t)
			m.Env = append(m.Env, faultEnv+"="+fault)
			s := m.NewServer()
			s.Start()
			testenv.True(t, s.WaitExit(harness.Soon) != 0, "the first start ended well:\n%s", s.LogTail(20))
			s.Start()
			s.WaitAPI()
			out, err := s.Run(s.Coracle(), "status", "--data-dir", s.DataDir)
			testenv.True(t, err != nil, "the status finds nothing wrong")
			harness.Says(t, out, "off, while store and API of this server go on", want, "after 1m0s")
			testenv.NoError(t, s.Stop())
		})
	}
}

// TestNodeWithoutFolderLeavesServer: whatever is wrong with the folder of the node, the server serves.
func TestNodeWithoutFolderLeavesServer(t *testing.T) {
	testenv.RequireRoot(t, "namespaces")
	if _, err := embedded.Unpack(t.TempDir()); err != nil {
		testenv.Missing(t, testenv.Embedded, "make embedded has not run in this tree")
	}
	t.Setenv("CORACLE_BIN", testenv.Must(os.Executable())(t))
	m := harness.NewMachine(t)
	m.Env = append(m.Env, faultEnv+"=panic") // containerd would panic
	s := m.NewServer()
	testenv.NoError(t, os.MkdirAll(s.DataDir, 0o755))
	testenv.NoError(t, os.WriteFile(filepath.Join(s.DataDir, "agent"), nil, 0o600))
	s.Start()
	s.WaitAPI()
	out, err := s.Run(s.Coracle(), "status", "--data-dir", s.DataDir)
	testenv.True(t, err != nil, "the status finds nothing wrong")
	harness.Says(t, out, "off, while store and API of this server go on", "agent", "not a directory")
	testenv.NoError(t, s.Stop())
}
