// SPDX-License-Identifier: Apache-2.0

package plugin_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/cni/plugin"
	"github.com/coracle-k8s/coracle/cni/wire"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// agent answers one call after another and notes the requests.
func agent(t *testing.T, answer wire.Response) (socket string, requests <-chan wire.Request) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "cni.sock")
	l := testenv.Must(net.Listen("unix", socket))(t)
	t.Cleanup(func() { l.Close() })
	seen := make(chan wire.Request, 10) // more than any test makes
	go testenv.Accept(l, func(c net.Conn) {
		var req wire.Request
		if wire.Read(c, &req) == nil {
			seen <- req
			_ = wire.Write(c, answer)
		}
		c.Close()
	})
	return socket, seen
}

func call(t *testing.T, stdin string, env map[string]string) (code int, out map[string]any) {
	t.Helper()
	var stdout bytes.Buffer
	code = plugin.Run(t.Context(), plugin.Options{
		Getenv: func(k string) string { return env[k] }, Stdin: strings.NewReader(stdin), Stdout: &stdout,
	})
	if stdout.Len() > 0 {
		testenv.NoError(t, json.Unmarshal(stdout.Bytes(), &out), "printed %q", stdout.String())
	}
	return code, out
}

func env(command string) map[string]string {
	return map[string]string{
		"CNI_COMMAND": command, "CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/x", "CNI_IFNAME": "eth0", "CNI_ARGS": "K8S_POD_NAME=web",
	}
}

func conf(version, socket string) string {
	return fmt.Sprintf(`{"cniVersion":%q,"name":"coracle","type":"coracle-cni","socket":%q}`, version, socket)
}

func TestPluginForwardsCallToAgent(t *testing.T) {
	socket, requests := agent(t, wire.Response{Result: json.RawMessage(`{"cniVersion":"1.0.0","ips":[]}`)})
	code, out := call(t, conf("1.0.0", socket), env("ADD"))
	testenv.False(t, code != 0 || out["cniVersion"] != "1.0.0", "exit %d, printed %v", code, out)
	req := <-requests
	want := wire.Request{Command: "ADD", ContainerID: "c1", Netns: "/run/netns/x", IfName: "eth0", Args: "K8S_POD_NAME=web"}
	got := req
	got.Config = nil
	testenv.False(t, fmt.Sprint(got) != fmt.Sprint(want) || string(req.Config) != conf("1.0.0", socket), "asked %+v", req)
}

func TestEmptyResultPrintsNothing(t *testing.T) {
	socket, _ := agent(t, wire.Response{})
	for _, command := range []string{"DEL", "CHECK", "GC", "STATUS"} {
		if code, out := call(t, conf("1.1.0", socket), env(command)); code != 0 || out != nil {
			t.Errorf("%s: exit %d, printed %v", command, code, out)
		}
	}
}

func TestPluginPrintsErrorsAsCNIAsks(t *testing.T) {
	socket, _ := agent(t, wire.Response{Error: &wire.Error{CNIVersion: "1.0.0", Code: 100, Msg: "no free address"}})
	absent := filepath.Join(t.TempDir(), "gone.sock")
	without := func(key string) map[string]string {
		e := env("ADD")
		delete(e, key)
		return e
	}
	for name, c := range map[string]struct {
		stdin string
		env   map[string]string
		code  uint
		words string
	}{
		"from the agent":     {conf("1.0.0", socket), env("ADD"), 100, "no free address"},
		"agent away":         {conf("1.0.0", absent), env("ADD"), wire.CodeTryAgainLater, "not running or still starting"},
		"agent away, DEL":    {conf("1.0.0", absent), env("DEL"), wire.CodeTryAgainLater, "not running or still starting"},
		"agent away, STATUS": {conf("1.1.0", absent), env("STATUS"), wire.CodeUnavailable, "not running"},
		"old version":        {conf("0.3.1", socket), env("ADD"), wire.CodeIncompatibleVersion, "cniVersion"},
		"no socket":          {conf("1.0.0", ""), env("ADD"), wire.CodeInvalidConfig, "socket"},
		"not JSON":           {"{", env("ADD"), wire.CodeDecode, "decoding"},
		"no command":         {conf("1.0.0", socket), without("CNI_COMMAND"), wire.CodeInvalidEnvironment, "CNI_COMMAND"},
		"no container":       {conf("1.0.0", socket), without("CNI_CONTAINERID"), wire.CodeInvalidEnvironment, "CNI_CONTAINERID"},
		"no namespace":       {conf("1.0.0", socket), without("CNI_NETNS"), wire.CodeInvalidEnvironment, "CNI_NETNS"},
		"no interface":       {conf("1.0.0", socket), without("CNI_IFNAME"), wire.CodeInvalidEnvironment, "CNI_IFNAME"},
	} {
		code, out := call(t, c.stdin, c.env)
		msg, _ := out["msg"].(string)
		if code != 1 || out["code"] != float64(c.code) || !strings.Contains(msg, c.words) || !wire.SupportsVersion(fmt.Sprint(out["cniVersion"])) {
			t.Errorf("%s: exit %d, printed %v; want code %d and %q", name, code, out, c.code, c.words)
		}
	}
}

func TestPluginSaysItsVersions(t *testing.T) {
	for _, stdin := range []string{"", `{"cniVersion":"1.0.0"}`} {
		code, out := call(t, stdin, env("VERSION"))
		testenv.False(t, code != 0 || fmt.Sprint(out["supportedVersions"]) != "[1.0.0 1.1.0]", "exit %d, printed %v", code, out)
	}
}

// The helper starts for every pod: what it links from this repository must not pull in more than these two packages.
func TestPluginLinksOnlySmallPackages(t *testing.T) {
	out := testenv.Must(exec.Command("go", "list", "-deps", "-f", `{{if not .Standard}}{{.ImportPath}}{{end}}`, ".").Output())(t)
	const root = "github.com/coracle-k8s/coracle/cni/"
	testenv.Equal(t, fmt.Sprint(strings.Fields(string(out))), fmt.Sprint([]string{root + "wire", root + "plugin"}), "imports")
}
