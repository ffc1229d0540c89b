// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/nft"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/netns"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// withSites is a table with sites of Gateways, by name with their ports, each of which answers with a status of its
// own: 302 and so on.
func withSites(t *testing.T, codes map[string]int, sites map[string]uint16) table.Sections {
	t.Helper()
	out := table.Sections{}
	for name, port := range sites {
		r := table.Route{Path: "/", Kind: table.PathPrefix, Policy: &table.Policy{Redirect: &table.Redirect{Status: codes[name], Location: "/"}}}
		testenv.NoError(t, out.Put(table.SiteKey(name), table.Site{NodePort: port}))
		testenv.NoError(t, out.Put(table.HostKey(name, ""), table.Host{Routes: []table.Route{r}}))
	}
	return out
}

func TestSiteSocketsFollowNodePorts(t *testing.T) {
	s := table.Sections{}
	for name, site := range map[string]table.Site{
		"a:g:80": {NodePort: 10060}, "b:g:80": {NodePort: 10060}, "a:g:443": {NodePort: 10061, TLS: true},
		"a:g:22": {NodePort: 22}, "a:g:6443": {NodePort: 10250}, "a:g:81": {NodePort: 10054}, "a:g:82": {},
	} {
		testenv.NoError(t, s.Put(table.SiteKey(name), site))
	}
	s[table.SiteKey("a:g:90")] = []byte(`{"nodePort":"10070"}`)
	testenv.Equal(t, fmt.Sprint(siteSockets(s)), "map[a:g:443/https:10061 a:g:80/http:10060]", "the sockets are")
}

// TestSocketsFollowGatewaySites: a node's sockets follow the sites of its table, through another version of the proxy
// and a restart of the agent, and it says which it serves.
func TestSocketsFollowGatewaySites(t *testing.T) {
	netns.RequireNFT(t)
	n := newTestNode(t)
	_ = backend(t) // the address
	n.o.NodeIPs = []netip.Addr{netip.MustParseAddr(machineIP)}
	const a, b, c = "shop:a:80", "shop:b:80", "shop:c:80"
	codes := map[string]int{a: http.StatusMovedPermanently, b: http.StatusFound, c: http.StatusTemporaryRedirect}
	answers := func(port int) int {
		client := fresh()
		client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		res, err := client.Get("http://" + net.JoinHostPort(machineIP, strconv.Itoa(port)) + "/")
		if err != nil {
			return 0
		}
		_ = res.Body.Close()
		return res.StatusCode
	}
	word := func(sites map[int]string) string {
		out := []string{"http=10054", "https=10055"}
		for port, site := range sites {
			out = append(out, fmt.Sprintf("%d=%s", port, table.SiteMark(site)))
		}
		slices.Sort(out[2:])
		return strings.Join(out, ",")
	}
	says := func(a *agentRun, sites map[int]string) {
		t.Helper()
		want := word(sites)
		eventually(t, "the node says "+want, func() bool { return a.annotation() == want })
	}
	occupied := testenv.Must(net.Listen("tcp", machineIP+":10062"))(t)
	defer occupied.Close()

	n.table = withSites(t, codes, map[string]uint16{a: 10060, c: 10062})
	run := startAgent(n)
	says(run, map[int]string{10060: a})
	testenv.Equal(t, answers(10060), codes[a], "the Gateway answers")
	eventually(t, "the board names the port that another program has", func() bool {
		now := run.board.Components()[0]
		return now.State == status.Degraded && strings.Contains(now.Message, "10062")
	})
	rules, err := nft.Count(NFTable())
	testenv.False(t, err != nil || len(rules.Rules) == 0, "the kernel guards nothing: %v", err)
	process := n.processes()[0]

	// Another site, and one whose port becomes another one's: no process is started for it.
	run.send(withSites(t, codes, map[string]uint16{b: 10060, a: 10061}))
	says(run, map[int]string{10060: b, 10061: a})
	if x, y := answers(10060), answers(10061); x != codes[b] || y != codes[a] {
		t.Errorf("the Gateways answer %d and %d", x, y)
	}
	if now := n.processes(); !slices.Equal(now, []int{process}) {
		t.Errorf("processes %v serve after %d", now, process)
	}

	// The next run has another version, and learns of the table late: sockets of the run before stay open until then.
	run.stop()
	n.install("next")
	n.table = withSites(t, codes, map[string]uint16{b: 10060})
	run = startAgent(n)
	says(run, map[int]string{10060: b})
	eventually(t, "another version serves alone", func() bool {
		now := n.listening()
		return len(now) == 1 && now[0] != process
	})
	if x, y := answers(10060), answers(10061); x != codes[b] || y != 0 {
		t.Errorf("the Gateways answer %d and %d, want the first alone", x, y)
	}
	process = n.listening()[0]

	// The same version, found by another run.
	run.stop()
	run = startAgent(n)
	says(run, map[int]string{10060: b})
	if now := n.listening(); !slices.Equal(now, []int{process}) {
		t.Errorf("processes %v serve after %d", now, process)
	}
	testenv.NoError(t, syscall.Kill(process, syscall.SIGKILL))
	testenv.Equal(t, answers(10060), codes[b], "after the end of the proxy the Gateway answers")
}

// TestServiceAloneServesNothing: a tenant's Service with the label of Gateways has the node ask, and nothing more.
func TestServiceAloneServesNothing(t *testing.T) {
	netns.RequireNFT(t)
	n := newTestNode(t)
	_ = backend(t) // the address
	n.o.NodeIPs = []netip.Addr{netip.MustParseAddr(machineIP)}
	n.table = table.Sections{}
	run := startAgentWith(n, &corev1.Service{ObjectMeta: metav1.ObjectMeta{
		Namespace: "shop", Name: "forged", Labels: map[string]string{table.GatewayLabel: "web"}, Annotations: map[string]string{"coracle.dev/gateway-ports": "80=10060"},
	}})
	eventually(t, "the board says that nothing is to be served", func() bool {
		return strings.Contains(run.board.Components()[0].Message, "no Gateway has a listener")
	})
	if now := n.processes(); len(now) > 0 {
		t.Errorf("processes %v serve", now)
	}
	site := "shop:web:80"
	run.send(withSites(t, map[string]int{site: http.StatusFound}, map[string]uint16{site: 10060}))
	eventually(t, "the node says what it serves", func() bool { return strings.Contains(run.annotation(), "10060="+table.SiteMark(site)) })
	run.send(table.Sections{})
	eventually(t, "no process is left", func() bool { return len(n.processes()) == 0 })
	eventually(t, "the node says nothing", func() bool { return run.annotation() == "" })
	eventually(t, "the kernel's table is gone", func() bool {
		there, err := nft.Exists(NFTable())
		return err == nil && !there
	})
}
