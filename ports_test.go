// SPDX-License-Identifier: Apache-2.0

package coracle

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

const (
	trial     = "it tries whether a port can be opened, and closes it at once"
	noPort    = "it opens Unix sockets or sockets for packets alone"
	ownBounds = "the ingress proxy is a process of its own, and bounds its connections itself (ingress/dataplane/limit.go)"
	console   = "`coracle console` is a process of its user, and ends with it"
)

// openers are the files that may open or take over listeners themselves, each with its reason. All others get their TCP
// ports from internal/connlimit, which has the list of them. test/nodes compares that list with the sockets of a server
// and of an agent, so that it has the ports that libraries open as well.
var openers = map[string]string{
	"internal/connlimit/port.go":               "it is the limiter",
	"internal/preflight/probe.go":              trial,
	"agent/kubelet/preflight.go":               trial,
	"dns/starting.go":                          trial,
	"internal/unixsocket/unixsocket.go":        noPort,
	"controllers/helmcharts/helmjob/access.go": noPort,
	"server/gossipmember/member.go":            noPort,
	"cmd/coracle/agentmember.go":               noPort,
	"agent/ingress/launch.go":                  noPort,
	"server/highfd/highfd.go":                  "it moves a listener to another descriptor",
	"agent/ingress/sockets.go":                 "the proxy accepts; " + ownBounds,
	"cmd/coracle-ingress/main.go":              ownBounds,
	"ingress/dataplane/listeners.go":           ownBounds,
	"console/loopback.go":                      console,
	"console/forward.go":                       console,
}

// opens are functions and types by which a program opens or takes over a listener, of net, crypto/tls and net/http, and
// methods of any package.
var opens = map[string]bool{
	"net.Listen": true, "net.ListenTCP": true, "net.ListenUnix": true, "net.ListenConfig": true, "net.FileListener": true, "tls.Listen": true,
	"http.ListenAndServe": true, "http.ListenAndServeTLS": true, "reuseport.Listen": true, "unix.Listen": true, "syscall.Listen": true,
	"httptest.NewServer": true,
}

// TestPortsAreOpenedByTheLimiter: no part of a server or agent opens a TCP port without a bound on its connections.
func TestPortsAreOpenedByTheLimiter(t *testing.T) {
	files, used := token.NewFileSet(), map[string]bool{}
	testenv.NoError(t, filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (slices.Contains([]string{"build", "test", "packaging"}, path) || path != "." && strings.HasPrefix(d.Name(), ".")):
			return filepath.SkipDir
		case d.IsDir(), filepath.Ext(path) != ".go", strings.HasSuffix(path, "_test.go"):
			return nil
		}
		f, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			s, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			of, _ := s.X.(*ast.Ident)
			if of != nil && opens[of.Name+"."+s.Sel.Name] || strings.HasPrefix(s.Sel.Name, "ListenAndServe") {
				used[path] = true
				testenv.False(t, openers[path] == "", "%s: %s: a TCP port is opened by connlimit.Listen, which lists and bounds it; if that is not "+
					"possible, say why in ports_test.go", files.Position(s.Pos()), s.Sel.Name)
			}
			return true
		})
		return nil
	}))
	for path := range openers {
		testenv.True(t, used[path], "%s opens no listener any more", path)
	}
}
