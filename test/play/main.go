// SPDX-License-Identifier: Apache-2.0

// Command play brings up a cluster in namespaces of its own, as the end-to-end tests do, and runs a shell in it:
//
//	make play                            a shell
//	make play CMD='kubectl get nodes'    one command, without a terminal; its exit code is play's
//	make console                         coracle console, at a port of 127.0.0.1 of this machine
//
// The shell runs on the cluster's machine: kubectl and ctr are the cluster's, and the machine's network, processes and
// mounts are what one sees. When the shell ends, everything goes: nothing of it was ever on the host. It needs root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func main() {
	harness.FirstProcess()
	command := flag.String("c", "", "a command for the shell; without one it is interactive")
	console := flag.Bool("console", false, "run coracle console instead of a shell")
	flag.Parse()
	// An interrupt is for what runs in the shell; play goes on to tidy up.
	signal.Notify(make(chan os.Signal, 1), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	code := 1
	if !harness.Alone(func(t testing.TB) { code = play(t, *command, *console, flag.Args()) }) && code == 0 {
		code = 1
	}
	os.Exit(code)
}

// play returns the shell's exit code.
func play(t testing.TB, command string, console bool, serverArgs []string) int {
	m := harness.NewMachine(t)
	s := m.NewServer(serverArgs...)
	images := filepath.Join(s.DataDir, "images")
	testenv.NoError(t, os.MkdirAll(images, 0o755))
	harness.WriteBoxImage(t, filepath.Join(images, "box.tar.gz"))
	fmt.Fprintln(os.Stderr, "starting a cluster of one node")
	s.StartNode()
	bin := filepath.Join(m.Dir, "bin")
	testenv.NoError(t, os.Mkdir(bin, 0o755))
	for _, name := range []string{"coracle", "kubectl", "ctr"} {
		testenv.NoError(t, os.Symlink(m.Coracle(), filepath.Join(bin, name)))
	}
	m.Env = append(m.Env, "CORACLE_DATA_DIR="+s.DataDir, "KUBECONFIG="+s.Kubeconfig, "PATH="+bin+":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"PS1=coracle play# ", "TERM="+os.Getenv("TERM"))
	shell := m.Command(context.Background(), "sh", "-c", command)
	if console {
		shell = m.Command(context.Background(), m.Coracle(), "console", "--no-open", "--port", relay(t, m))
	} else if command == "" {
		fmt.Fprintf(os.Stderr, `The node is Ready. kubectl, ctr and coracle work; the server's log: %s
There is one image: kubectl run box --image=%s --image-pull-policy=Never -- sleep 3600
"exit" ends the cluster and removes all of it.
`, s.Log, harness.BoxImage)
		shell = m.Command(context.Background(), "sh", "-i")
	}
	shell.Stdin, shell.Stdout, shell.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := shell.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	testenv.NoError(t, err)
	return 0
}

// relay opens a free port of this machine's 127.0.0.1 that leads to the same port of the cluster's machine, and returns
// its number.
func relay(t testing.TB, m *harness.Machine) string {
	l := testenv.Must(net.Listen("tcp", "127.0.0.1:0"))(t)
	t.Cleanup(func() { _ = l.Close() }) // ends the loop below
	at := l.Addr().String()
	go testenv.Accept(l, func(outside net.Conn) {
		go func() {
			defer outside.Close()
			inside, err := m.Dial(context.Background(), "tcp", at)
			if err != nil {
				return // the browser sees a closed connection
			}
			defer inside.Close()
			go func() {
				_, _ = io.Copy(inside, outside) // either end may close
				_ = inside.Close()
			}()
			_, _ = io.Copy(outside, inside)
		}()
	})
	_, port, err := net.SplitHostPort(at)
	testenv.NoError(t, err)
	return port
}
