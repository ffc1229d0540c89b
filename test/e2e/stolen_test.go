//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/util/cert"

	"github.com/coracle-k8s/coracle/gossip"
	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/clustersettings"
	"github.com/coracle-k8s/coracle/internal/nodecreds"
	"github.com/coracle-k8s/coracle/joining/protocol"
	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/nodetunnel"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// thief has a copy of an agent's disk, and a place in the machines' network.
type thief struct {
	t                 *testing.T
	site              *harness.Site
	node              string
	disk              string // the folder with the copy
	address           string // of the node
	joined, bootstrap token.Token
	pod               string // the token of a pod's ServiceAccount, which was in its memory
}

// errShut says that a server has refused.
var errShut = errors.New("refused")

func (x *thief) pair(name string) tls.Certificate {
	x.t.Helper()
	path := filepath.Join(x.disk, "agent", "cred", name)
	return testenv.Must(tls.LoadX509KeyPair(path, path))(x.t)
}

// dial connects with a certificate to a port that speaks a protocol.
func (x *thief) dial(address, alpn string, pair *tls.Certificate) (conn *tls.Conn, err error) {
	c := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{alpn}} // the server's checks are tested
	if pair != nil {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair, nil }
	}
	err = x.site.Do(func() error {
		conn, err = tls.DialWithDialer(&net.Dialer{Timeout: soon}, "tcp", address, c)
		return err
	})
	return conn, err
}

// get asks a server's API. A refusal is errShut.
func (x *thief) get(server *harness.Server, path string, pair *tls.Certificate, bearer string) (conn *tls.Conn, err error) {
	return x.ask(server.IP+":6443", path, pair, bearer)
}

func (x *thief) ask(address, path string, pair *tls.Certificate, bearer string) (conn *tls.Conn, err error) {
	if conn, err = x.dial(address, "http/1.1", pair); err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(soon))
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n", path)
	if bearer != "" {
		fmt.Fprintf(conn, "Authorization: Bearer %s\r\n", bearer)
	}
	fmt.Fprint(conn, "\r\n")
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	switch {
	case err != nil:
		return conn, err
	case answer.StatusCode == http.StatusUnauthorized:
		return conn, fmt.Errorf("%s: %w", answer.Status, errShut)
	case answer.StatusCode != http.StatusOK:
		return conn, errors.New(answer.Status)
	}
	return conn, nil
}

// stays opens a connection on which a server sends nothing by itself. A refusal, errShut, is an alert of TLS.
func (x *thief) stays(server *harness.Server, alpn string) error {
	pair := x.pair("client-kubelet.pem")
	conn, err := x.dial(server.IP+":6443", alpn, &pair)
	if err == nil {
		defer conn.Close()
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		_, err = conn.Read(make([]byte, 1))
	}
	var alert tls.AlertError
	var operation *net.OpError
	if errors.As(err, &alert) || errors.As(err, &operation) && operation.Op == "remote error" {
		return fmt.Errorf("%w: %w", errShut, err)
	}
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		return nil
	}
	return err
}

// join asks a server for certificates, or for something else. A refusal, errShut, names a certificate or a token.
func (x *thief) join(server *harness.Server, change func(*protocol.Call)) error {
	password := strings.TrimSpace(string(testenv.Must(os.ReadFile(filepath.Join(x.disk, "agent", "node-password")))(x.t)))
	q := protocol.Call{Address: server.IP + ":6443", Dialer: net.Dialer{Timeout: soon}, Request: protocol.Request{
		Role: token.RoleAgent, Time: time.Now(),
		Node: protocol.Node{Name: x.node, Addresses: []netip.Addr{netip.MustParseAddr(x.address)}, Password: password},
	}}
	change(&q)
	err := x.site.Do(func() error { return testenv.Err(protocol.Send(x.t.Context(), q)) })
	var refusal *protocol.Refusal
	if errors.As(err, &refusal) {
		switch refusal.Code {
		case protocol.CodeCertificate, protocol.CodeToken:
			return fmt.Errorf("%w: %w", errShut, err)
		case protocol.CodeRequest: // it was let in, and has sent no requests for certificates
			return nil
		}
	}
	return err
}

// ways are what each secret may open at a server.
func (x *thief) ways() map[string]func(*harness.Server) error {
	kubelet, network := x.pair("client-kubelet.pem"), x.pair("client-network.pem")
	get := func(path string, pair *tls.Certificate, bearer string) func(*harness.Server) error {
		return func(s *harness.Server) error {
			conn, err := x.get(s, path, pair, bearer)
			if conn != nil {
				_ = conn.Close()
			}
			return err
		}
	}
	certified := func(q *protocol.Call) {
		chain := testenv.Must(cert.CertsFromFile(filepath.Join(x.disk, "agent", "cred", "server-ca.crt")))(x.t)
		q.Certificate, q.Root = &kubelet, chain[len(chain)-1]
	}
	join := func(change func(*protocol.Call)) func(*harness.Server) error {
		return func(s *harness.Server) error { return x.join(s, change) }
	}
	return map[string]func(*harness.Server) error{
		"the kubelet's certificate, at the API": get("/api/v1/nodes/"+x.node, &kubelet, ""),
		"the kubelet's, for the ingress' table": get(table.Path, &kubelet, ""),
		"the network parts', at the API":        get("/api/v1/nodes", &network, ""),
		"the network parts', for the settings":  get(clustersettings.Path+"?"+clustersettings.Parameter+"="+clustersettings.DNS, &network, ""),
		"the kubelet's, as a node's tunnel":     func(s *harness.Server) error { return x.stays(s, nodetunnel.Protocol) },
		"the kubelet's, as a stream of gossip":  func(s *harness.Server) error { return x.stays(s, gossip.ALPN) },
		"the kubelet's, for its renewal":        join(certified),
		"the kubelet's, for the gossip key":     join(func(q *protocol.Call) { certified(q); q.Request.Want = protocol.WantGossipKeys }),
		"the token and the node's password":     join(func(q *protocol.Call) { q.Token = x.joined }),
		"the token, as another node": join(func(q *protocol.Call) {
			q.Token, q.Request.Node.Name = x.joined, "another"
			q.Request.Node.Addresses = []netip.Addr{netip.MustParseAddr("10.77.0.199")}
		}),
		"a token of coracle token create":       join(func(q *protocol.Call) { q.Token = x.bootstrap }),
		"the token of its pod's ServiceAccount": get("/api", nil, x.pod),
	}
}

// TestStolenNodeOpensNothing: each secret of a copied agent's disk opens something, and none does once the node is
// revoked: on two of three servers at once, also on connections that are open, and on the third one, which is off
// meanwhile, when it runs again. The command names that server, and given again says that all is done. Another node and
// its pod run on, and a new machine of the same name joins.
func TestStolenNodeOpensNothing(t *testing.T) {
	t.Parallel() // it mostly waits
	site := harness.NewSite(t)
	servers := threeServers(site)
	first, off := servers[0], servers[2]
	harness.Eventually(t, soon, "there are three servers", func() error { return serversAre(first, 3) })
	victim, other := site.NewMachine().NewAgent(first), site.NewMachine().NewAgent(first)
	for _, a := range []*harness.Server{victim, other} {
		a.AddBoxImage()
		a.Start()
	}
	for i, a := range []*harness.Server{victim, other} {
		harness.Eventually(t, longer, "the node is ready", func() error { return first.NodeReady(a) })
		first.InsistsOn(fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: pod-%d}
spec:
  nodeName: %s
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: %q, imagePullPolicy: Never, command: [sleep, "36000"]}]
`, i, a.NodeName(), harness.BoxImage))
		first.Insists("wait", "--for=condition=Ready", fmt.Sprintf("pod/pod-%d", i), "--timeout=180s")
	}
	x := steal(t, site, first, victim)
	everyKeyIsTried(t, x.disk)
	for name, opens := range x.ways() {
		harness.Eventually(t, soon, "before the revocation: "+name, func() error { return opens(first) })
	}
	kubelet := x.pair("client-kubelet.pem")
	watch := testenv.Must(x.get(first, "/api/v1/nodes?watch=1&fieldSelector=metadata.name="+x.node, &kubelet, ""))(t)
	defer watch.Close()
	former := gossipKeysIn(t, filepath.Join(x.disk, "agent", "cluster.json"))
	running := func() string {
		return first.Insists("get", "pod", "pod-1", "-o", "jsonpath={.metadata.uid} {.status.containerStatuses[0].containerID}")
	}
	pod, pid := running(), other.Pid()

	off.Kill()
	revoke := func() (string, error) {
		return servers[1].Run(servers[1].Coracle(), "node", "revoke", x.node, "--data-dir", servers[1].DataDir)
	}
	harness.Eventually(t, longer, "the node is revoked, and the server that is off is named", func() error { // a leader may have to be elected
		out, err := revoke()
		if err == nil || !strings.Contains(err.Error()+out, "have not said within") {
			return fmt.Errorf("%w\n%s", err, out)
		}
		return nil
	})
	shut := func(s *harness.Server) {
		t.Helper()
		for name, opens := range x.ways() {
			harness.Eventually(t, soon, fmt.Sprintf("machine %d refuses %s", s.Number, name), func() error {
				if err := opens(s); !errors.Is(err, errShut) {
					return fmt.Errorf("it is not refused: %w", err)
				}
				return nil
			})
		}
	}
	for _, s := range servers[:2] {
		shut(s)
	}
	_ = watch.SetReadDeadline(time.Now().Add(soon))
	for buffer := make([]byte, 4096); ; { // what was sent before
		if _, err := watch.Read(buffer); err != nil {
			timeout, ok := errors.AsType[net.Error](err)
			testenv.False(t, ok && timeout.Timeout(), "a watch that was open goes on")
			break
		}
	}
	for _, path := range []string{"/pods", "/metrics", "/run/default/pod-1/main", "/containerLogs/default/pod-1/main"} {
		_, err := x.ask(other.IP+":10250", path, &kubelet, "")
		testenv.Fails(t, err, "another node's kubelet answers %s", path)
	}
	testenv.Equal(t, first.Insists("get", "nodes", "-o", "name"), "node/"+other.NodeName(), "nodes are")
	for _, file := range []string{first.Seen("server", "gossip-keys.json"), servers[1].Seen("server", "gossip-keys.json"), other.Seen("agent", "cluster.json")} {
		for _, key := range gossipKeysIn(t, file).Keys {
			testenv.False(t, bytes.Equal(key, former.Keys[0]), "%s has the stolen gossip key", file)
		}
	}

	off.StartAPI()
	shut(off)
	harness.Eventually(t, soon, "all servers have said that they refuse the node", func() error {
		out, err := revoke()
		if err == nil && !strings.Contains(out, "was revoked before") {
			err = errors.New("it has begun again: " + out)
		}
		return err
	})
	testenv.Equal(t, running(), pod, "the pod of the other node is")
	testenv.True(t, other.Alive() == nil && other.Pid() == pid, "the other agent was restarted")
	harness.Eventually(t, soon, "the other node is ready", func() error { return first.NodeReady(other) })

	next := site.NewMachine().NewAgent(first, "--node-name", x.node)
	next.Start()
	harness.Eventually(t, longer, "a new machine joins under the name", func() error {
		_, err := first.TryKubectl("wait", "--for=condition=Ready", "node/"+x.node, "--timeout=1s")
		return err
	})
	shut(first)
}

// steal copies what is on an agent's disk, and takes the token of its pod out of its memory.
func steal(t *testing.T, site *harness.Site, server, victim *harness.Server) *thief {
	t.Helper()
	x := &thief{t: t, site: site, node: victim.NodeName(), disk: t.TempDir(), address: victim.IP}
	testenv.NoError(t, filepath.WalkDir(victim.Seen("agent"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		to := filepath.Join(x.disk, "agent", strings.TrimPrefix(path, victim.Seen("agent")))
		data, err := os.ReadFile(path)
		if err == nil && len(data) < 1<<20 { // images and logs are larger
			err = errors.Join(os.MkdirAll(filepath.Dir(to), 0o700), os.WriteFile(to, data, 0o600))
		}
		return err
	}))
	given := victim.Args[len(victim.Args)-1] // --token, which a machine has in its configuration
	x.joined = testenv.Must(token.Parse(given))(t)
	made := testenv.Must(server.Run(server.Coracle(), "token", "create", "--quiet", "--data-dir", server.DataDir))(t)
	x.bootstrap = testenv.Must(token.Parse(strings.TrimSpace(made)))(t)
	x.pod = strings.TrimSpace(server.Insists("exec", "pod-0", "--", "cat", "/var/run/secrets/kubernetes.io/serviceaccount/token"))
	return x
}

// everyKeyIsTried checks that the disk has the private keys that the test knows, and no others.
func everyKeyIsTried(t *testing.T, disk string) {
	t.Helper()
	f := nodecreds.In(filepath.Join(disk, "agent", "cred"))
	// The key of the kubelet's port opens nothing at a server: its authority is none of clients.
	known := map[string]bool{f.KubeletPair: true, f.NetworkPair: true, f.KubeletServing: true}
	testenv.NoError(t, filepath.WalkDir(disk, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		testenv.False(t, bytes.Contains(data, []byte("PRIVATE KEY")) && !known[path],
			"%s has a private key that this test does not try", path)
		return err
	}))
}

// gossipKeysIn reads the gossip keys in a file, on its own or in the state of an agent.
func gossipKeysIn(t *testing.T, file string) clusterconfig.GossipKeys {
	t.Helper()
	var both struct {
		clusterconfig.GossipKeys
		Gossip clusterconfig.GossipKeys `json:"gossip"`
	}
	testenv.NoError(t, json.Unmarshal(testenv.Must(os.ReadFile(file))(t), &both))
	if len(both.Gossip.Keys) > 0 {
		return both.Gossip
	}
	testenv.Require(t, len(both.Keys) > 0, "%s has no gossip keys", file)
	return both.GossipKeys
}
