//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// converse sends words by python-websockets and prints what comes back.
const converse = `
import asyncio, ssl, sys, websockets
async def main(url, ca, ip):
    async with websockets.connect(url, ssl=ssl.create_default_context(cafile=ca), host=ip, port=443, server_hostname="load.example") as ws:
        for word in ["first", "x" * 100000, "last"]:
            await ws.send(word)
            print(await ws.recv() == word)
        await (await ws.ping())
asyncio.run(main(*sys.argv[1:]))
`

// TestClientsOfEachProtocolAreServed: clients that others have written, of each protocol, through the Service of the
// ingress.
func TestClientsOfEachProtocolAreServed(t *testing.T) {
	m := harness.NewMachine(t)
	for _, name := range []string{"curl", "nghttp", "gtlsclient", "python3"} {
		if out, err := m.Run("which", name); err != nil {
			testenv.Missing(t, testenv.HTTPClients, "%s is not installed: %s%v", name, out, err)
		}
	}
	load := program(t)
	s := m.NewServer()
	s.AddBoxImage()
	s.StartNode()
	files := certificate(t, s)
	s.Apply(fmt.Sprintf(site, 1, filepath.Dir(load)))
	s.Kubectl("rollout", "status", "deployment/site", "--timeout=180s")
	ip := harness.NodeIP
	serves(t, s, ip, files)
	run := func(want string, name string, args ...string) {
		t.Helper()
		if out, err := outside(s, name, args...); err != nil || !strings.Contains(out, want) {
			t.Errorf("%s does not say %q: %v\n%s", name, want, err, out)
		}
	}

	url := "https://" + siteName + "/"
	curl := []string{"-sSi", "--max-time", "60", "--cacert", files.CA, "--resolve", siteName + ":443:" + ip}
	run("HTTP/1.1 200 OK", "curl", append(curl, "--http1.1", url)...)
	run("HTTP/2 200", "curl", append(curl, "--http2", url)...)
	run(`alt-svc: h3=":443"; ma=3600`, "curl", append(curl, "--http2", url)...)
	run("HTTP/2 200", "curl", "-sSi", "--http2-prior-knowledge", "-H", "Host: "+siteName, "http://"+ip+"/")
	run("HTTP/1.1 200 OK", "curl", "-sSi", "-H", "Host: "+siteName, "http://"+ip+"/")

	body := filepath.Join(filepath.Dir(load), "body")
	testenv.NoError(t, os.WriteFile(body, []byte(strings.Repeat("0123456789abcdef", 64<<10)), 0o644))
	run("1048576", "sh", "-c", fmt.Sprintf("nghttp --no-verify-peer -H ':authority: %s' -d %s https://%s/echo | wc -c", siteName, body, ip))

	quic := []string{"--exit-on-all-streams-close", "--no-quic-dump", "--sni=" + siteName, "--timeout=60s"}
	run(":status: 200", "sh", "-c", "gtlsclient "+strings.Join(quic, " ")+" "+ip+" 443 "+url+" 2>&1")
	for name, more := range map[string]string{
		"many requests": "-n 50", "lost packets": "--tx-loss=0.1 --rx-loss=0.1", "another address": "--change-local-addr=100ms --delay-stream=300ms",
		"a NAT that forgets": "--change-local-addr=100ms --nat-rebinding --delay-stream=300ms", "another key": "--key-update=50ms --delay-stream=200ms",
	} {
		t.Run(name, func(t *testing.T) {
			out, err := outside(s, "sh", "-c", "gtlsclient "+strings.Join(quic, " ")+" "+more+" "+ip+" 443 "+url+" 2>&1")
			want := 1
			if name == "many requests" {
				want = 50
			}
			testenv.True(t, err == nil && strings.Count(out, ":status: 200") == want,
				"%d answers, want %d: %v\n%s", strings.Count(out, ":status: 200"), want, err, out)
		})
	}
	dir := filepath.Dir(body)
	run(":status: 200", "sh", "-c", fmt.Sprintf("mkdir -p %s/got && gtlsclient %s --no-http-dump -d %s -m POST --download=%s/got %s 443 https://%s/echo 2>&1",
		dir, strings.Join(quic, " "), body, dir, ip, siteName))
	run("", "cmp", body, filepath.Join(dir, "got", "echo"))

	run("True\nTrue\nTrue\n", "python3", "-c", converse, "wss://"+siteName+"/echo", files.CA, ip)

	// grpc-go, whose answers the program compares itself.
	out, err := outside(s, "sh", "-c", fmt.Sprintf("{ sleep 5; echo all; } | %s clients -rate 50 -websockets 2 -streams 3 %s", load, ip))
	var r struct{ Done, Failed map[string]int }
	if err == nil {
		err = json.Unmarshal([]byte(out), &r)
	}
	testenv.False(t, err != nil || r.Done["grpc"] < 3 || len(r.Failed) > 0, "the load: %v\n%s", err, out)
}
