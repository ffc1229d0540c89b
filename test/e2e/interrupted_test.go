//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/test/harness"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// bareServer is a cluster whose only server is no node, with nodes beside it.
type bareServer struct {
	*testing.T
	site  *harness.Site
	s     *harness.Server
	nodes []*harness.Server
}

func (c *bareServer) join() *harness.Server {
	c.Helper()
	a := c.site.NewMachine().NewAgent(c.s)
	a.Start()
	harness.Eventually(c, longer, "the node is ready", func() error { return c.s.NodeReady(a) })
	c.nodes = append(c.nodes, a)
	return a
}

func (c *bareServer) set(to string) (string, error) {
	return c.s.Run(c.s.Coracle(), "network-backend", "set", to, "--data-dir", c.s.DataDir)
}

func (c *bareServer) output() string {
	out, err := c.s.TryKubectl("get", "configmap", "-n", "kube-system", clusterconfig.BackendConfigMap, "-o", "jsonpath={.data."+clusterconfig.BackendData+"}")
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(out)
}

// all waits until every node goes by the back end: it says so, and has its devices and no other one's.
func (c *bareServer) all(want string) {
	c.Helper()
	devices := map[string]string{clusterconfig.NetworkVXLAN: "coracle-vxlan", clusterconfig.NetworkWireGuard: "coracle-wg"}
	for _, a := range c.nodes {
		harness.Eventually(c, soon, a.NodeName()+" goes by "+want, func() error {
			out, err := c.s.TryKubectl("get", "node", a.NodeName(), "-o", `jsonpath={.metadata.annotations.coracle\.dev/network-backend}`)
			if err != nil {
				return err
			}
			if got := strings.TrimSpace(out); got != want {
				return fmt.Errorf("it says %q", got)
			}
			links, err := a.Run("ip", "-br", "link")
			if err != nil {
				return err
			}
			for backend, device := range devices {
				if strings.Contains(links, device) != (backend == want) {
					return fmt.Errorf("its devices are\n%s", links)
				}
			}
			return nil
		})
	}
}

// TestNetworkChangesWithoutAgent: a node that is killed amid a change goes on with it when it starts; the only server,
// which is no node, refuses another --network-backend than the cluster's, and goes by what the cluster said last where
// the ConfigMap is gone or makes no sense.
func TestNetworkChangesWithoutAgent(t *testing.T) {
	t.Parallel() // it mostly waits
	c := &bareServer{T: t, site: harness.NewSite(t)}
	c.s = c.site.NewMachine().NewServer("--disable-agent")
	c.s.StartAPI()
	c.join()
	killed := c.join()
	c.all(clusterconfig.NetworkVXLAN)

	for _, round := range []struct {
		to    string
		hears bool // of the change, before it is killed
	}{{clusterconfig.NetworkWireGuard, false}, {clusterconfig.NetworkVXLAN, true}, {clusterconfig.NetworkHostGateway, true}} {
		if !round.hears {
			killed.Pause()
		}
		done := make(chan error, 1) // one: its goroutine need not wait
		go func() {
			out, err := c.set(round.to)
			if err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			}
			done <- err
		}()
		harness.Eventually(t, soon, "the cluster has "+round.to, func() error {
			if got := c.output(); got != round.to {
				return fmt.Errorf("it has %s", got)
			}
			return nil
		})
		if !round.hears {
			killed.Resume() // what waits for the process has been stopped with it
		}
		killed.Kill()
		err := <-done
		harness.Eventually(t, soon, "the change does not wait for a node that does not run", func() error {
			if err != nil { // given again it goes on: it waits for a minute each time
				_, err = c.set(round.to)
			}
			return err
		})
		killed.Start()
		c.all(round.to)
	}

	const now = clusterconfig.NetworkHostGateway
	c.stop()
	args := c.s.Args
	c.s.Args = append(append([]string{}, args...), "--network-backend", clusterconfig.NetworkVXLAN)
	c.s.Start()
	testenv.False(t, c.s.WaitExit(soon) == 0, "a server with another --network-backend starts")
	harness.Says(t, c.s.LogTail(20), `--network-backend: this server was given "vxlan", but its cluster has "host-gw"`)
	c.s.Args = args
	c.s.StartAPI()

	c.s.Kubectl("delete", "configmap", "-n", "kube-system", clusterconfig.BackendConfigMap)
	c.stop()
	c.s.StartAPI()
	harness.Eventually(t, soon, "the server has written it again", func() error {
		if got := c.output(); got != now {
			return fmt.Errorf("it is %s", got)
		}
		return nil
	})
	c.all(now)

	c.s.Kubectl("patch", "configmap", "-n", "kube-system", clusterconfig.BackendConfigMap, "--type=merge", "-p", `{"data": {"`+clusterconfig.BackendData+`": "pigeons"}}`)
	harness.Eventually(t, soon, "nonsense is no network back end", func() error { // a busy server may be too late with an answer
		out, err := c.s.Run(c.s.Coracle(), "network-backend", "show", "--data-dir", c.s.DataDir)
		testenv.Require(t, err != nil, "nonsense is shown as the cluster's: %s", out)
		if !strings.Contains(err.Error(), `says "pigeons", which is no network back end`) {
			return err
		}
		return nil
	})
	c.join()
	c.all(now)
	harness.Eventually(t, soon, "all nodes change", func() error { // given again it goes on: it waits for a minute each time
		return harness.Succeeds(c.set(clusterconfig.NetworkVXLAN))
	})
	c.all(clusterconfig.NetworkVXLAN)
}

func (c *bareServer) stop() {
	c.Helper()
	testenv.NoError(c, c.s.Stop())
}
