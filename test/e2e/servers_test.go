//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

var spreadDeployment = harness.Workload("Deployment", "d", "replicas: 2", `
  `+harness.OnePerNode("d")+`, terminationGracePeriodSeconds: 1, # sleep does not end by being asked to
  containers: [`+boxYAML+`, command: [sleep, "3600"]}]`)

// TestThreeServers: two servers join a third; each serves all of the API; what was written stays when the one that
// leads is killed, another one's controllers go on, and the one that was killed comes back.
func TestThreeServers(t *testing.T) {
	site := harness.NewSite(t)
	first := site.NewMachine().NewServer("--disable-agent")
	first.StartAPI()
	servers := []*harness.Server{first}
	for i := range 2 {
		m := site.NewMachine()
		s := m.NewPeer(first, "--disable-agent")
		if i == 1 {
			s = m.NewPeer(first) // with a node
			s.AddBoxImage()
		}
		s.StartAPI()
		servers = append(servers, s)
	}
	for i, s := range servers {
		s.Creates("configmap", fmt.Sprintf("by-%d", i))
	}
	see := func(s *harness.Server) error { // no answer may come while another leader is elected, but none is without what was written
		var out string
		harness.Eventually(t, soon, fmt.Sprintf("machine %d serves reads", s.Number), func() (err error) {
			out, err = s.TryKubectl("get", "configmaps", "-o", "name")
			return err
		})
		var err error
		for i := range servers {
			if want := fmt.Sprintf("by-%d", i); err == nil && !strings.Contains(out, want) {
				err = fmt.Errorf("no %s on machine %d:\n%s", want, s.Number, out)
			}
		}
		return err
	}
	for _, s := range servers {
		testenv.Check(t, see(s))
	}
	endpoints := func(s *harness.Server, of []*harness.Server) error {
		out, err := s.TryKubectl("get", "endpointslices", "kubernetes", "-o", "jsonpath={.endpoints[?(@.conditions.ready==true)].addresses[0]}")
		if err != nil {
			return err
		}
		var want []string
		for _, o := range of {
			want = append(want, o.IP)
		}
		if out != strings.Join(want, " ") {
			return fmt.Errorf("behind the Service kubernetes are %q, want %v", out, want)
		}
		return nil
	}
	harness.Eventually(t, soon, "all servers are behind the Service kubernetes", func() error { return endpoints(first, servers) })
	voters := func(s *harness.Server) error {
		out, err := s.Run(s.Coracle(), "store", "status", "--data-dir", s.DataDir)
		if err == nil && strings.Count(out, " voter ") < 2 {
			err = fmt.Errorf("not three voters yet:\n%s", out)
		}
		return err
	}
	harness.Eventually(t, soon, "all three vote", func() error { return voters(first) })

	first.Members(0, "any one server")

	a := site.NewMachine().NewAgent(first)
	a.AddBoxImage()
	a.Start()
	harness.Eventually(t, longer, "the agent's node is ready", func() error { return first.NodeReady(a) })

	all := append(slices.Clone(servers), a)
	alive := strings.Repeat("alive ", len(all))
	harness.Eventually(t, soon, "all machines know one another", func() error { return harness.KnowOneAnother(all, alive) })
	harness.Eventually(t, soon, "all parts of all machines have started", func() error { return harness.AllStarted(all) })
	harness.Eventually(t, soon, "the gossip key is replaced", func() error { // given again it goes on
		return harness.Succeeds(first.Run(first.Coracle(), "gossip", "rotate-key", "--data-dir", first.DataDir))
	})
	harness.Eventually(t, soon, "all machines know one another after the gossip key was replaced", func() error { return harness.KnowOneAnother(all, alive) })
	// A machine that is cut off and back is known again.
	for _, s := range servers {
		site.Split(a.Machine, s.Machine)
	}
	harness.Eventually(t, soon, "the agent that is cut off is silent", func() error { return harness.KnowOneAnother(servers, "alive alive alive silent ") })
	site.Heal()
	harness.Eventually(t, soon, "the agent is back", func() error { return harness.KnowOneAnother(all, alive) })
	topShows(t, servers, "node", servers[2].NodeName(), a.NodeName())

	first.Kill()
	rest := servers[1:]
	killed := time.Now()
	// The Service is asked about while all else goes on; three seconds are promised on a machine that is not busy.
	left := make(chan time.Duration, 1)
	go func() {
		for t.Context().Err() == nil && endpoints(rest[0], rest) != nil {
			time.Sleep(50 * time.Millisecond) // between two looks
		}
		left <- time.Since(killed)
	}()
	rest[0].Creates("configmap", "after")
	t.Logf("a write by kubectl after %v", time.Since(killed).Round(10*time.Millisecond))
	for _, s := range rest {
		testenv.Check(t, see(s))
	}
	rest[0].Members(1, "no further server: 2 of 3 voters answer")
	// The agent restarts while the only server that it was given is dead: it knows the others.
	a.Kill()
	a.Start()
	// Controllers, scheduler and agent work, each with a server that lives: a Deployment's pods run.
	rest[1].InsistsOn(spreadDeployment)
	rest[0].In(t).Await(longer, "deployment/d", "{.status.readyReplicas}", "2")
	select {
	case took := <-left:
		t.Logf("the dead one was behind the Service for %v", took.Round(10*time.Millisecond))
	case <-time.After(soon):
		t.Fatalf("the dead one is behind the Service still: %v", endpoints(rest[0], rest))
	}
	rest[0].InsistsOn(memoryScaler)
	topShows(t, rest, "pod", "d-")
	harness.Eventually(t, soon, "the dead one is silent", func() error {
		if err := harness.KnowOneAnother(rest, "silent alive alive alive "); err != nil {
			return err
		}
		// The agent has not heard of it since its own start, unless the others still reported it then.
		err := harness.KnowOneAnother([]*harness.Server{a}, "remembered alive alive alive ")
		if err != nil && harness.KnowOneAnother([]*harness.Server{a}, "silent alive alive alive ") == nil {
			return nil
		}
		return err
	})
	scaled(t, rest[0])
	first.StartAPI()
	back := time.Now()
	testenv.Check(t, see(first))
	testenv.Equal(t, first.Insists("get", "configmaps", "after", "-o", "name"), "configmap/after", "the server that came back has")
	harness.Eventually(t, soon, "all machines know one another again", func() error { return harness.KnowOneAnother(all, alive) })
	harness.Eventually(t, soon, "all servers are behind the Service again", func() error { return endpoints(rest[0], servers) })
	t.Logf("all are behind the Service %v after the one that came back had an API", time.Since(back).Round(10*time.Millisecond))

	// A server that has lost its store belongs to the cluster nevertheless, and begins no other one.
	testenv.NoError(t, first.Stop())
	testenv.NoError(t, os.RemoveAll(filepath.Join(first.DataDir, "server", "store")))
	first.StartAPI()
	testenv.Check(t, see(first), "after its store was lost")

	// A node that is deleted takes its server out of the cluster.
	gone := servers[2]
	harness.Eventually(t, longer, "the third server's node is there", func() error { return rest[0].NodeReady(gone) })
	first.Members(0, gone.NodeName()+" ")
	testenv.NoError(t, gone.Stop())
	first.Insists("delete", "node", gone.NodeName(), "--ignore-not-found") // a leader may have to be elected
	if out := first.Members(0, "With a third server any one may fail"); strings.Contains(out, gone.NodeName()+" ") {
		t.Errorf("after its node was deleted the server is a member still:\n%s", out)
	}
}

// waitingService has the address of a machine that is still to join among its external IPs. Without endpoints the
// proxies refuse what is sent there.
const waitingService = `
apiVersion: v1
kind: Service
metadata: {name: waiting}
spec:
  externalIPs: [%s]
  ports: [{port: %d}]
`

// TestServerAtNamedAddress: a user who may write Services keeps no server from joining, nor from coming back, by naming
// its address: the others' proxies let it be as soon as it is a member, before it is heard.
func TestServerAtNamedAddress(t *testing.T) {
	site := harness.NewSite(t)
	first := site.NewMachine().NewServer("--proxy-mode", "nftables") // with a node, whose proxy translates what the server sends, too, by rules that are read
	first.StartAPI()
	harness.Eventually(t, longer, "the node is ready", func() error { return first.NodeReady(first) })
	second := site.NewMachine().NewPeer(first, "--disable-agent")
	first.Apply(fmt.Sprintf(waitingService, second.IP, 6443))
	served := func(want bool) error {
		elements, err := first.NFT("list", "map", "ip", "kube-proxy", "no-endpoint-services")
		if is := strings.Contains(elements, second.IP+" "); err == nil && is != want {
			err = fmt.Errorf("that the Service is served at the server's address is %v:\n%s", is, elements)
		}
		return err
	}
	harness.Eventually(t, soon, "the Service is served at its external IP", func() error { return served(true) })
	unready := func(want string) error {
		return harness.Exactly(want)(first.TryKubectl("get", "endpointslices", "kubernetes", "-o", "jsonpath={.endpoints[?(@.conditions.ready==false)].addresses[0]}"))
	}
	second.StartAPI()
	second.Kill()
	harness.Eventually(t, soon, "the one that was killed is not ready", func() error { return unready(second.IP) })
	harness.Eventually(t, soon, "the Service is not served at the address of a server that is away", func() error { return served(false) })
	second.StartAPI()
	harness.Eventually(t, soon, "the one that came back is ready", func() error { return unready("") })
}
