//go:build bench

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/internal/clustersettings"
	"github.com/coracle-k8s/coracle/test/fleet"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// onEachNode has a pod on each node, with a token as pods have it by default.
const onEachNode = `apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: each
spec:
  selector:
    matchLabels: {app: each}
  template:
    metadata:
      labels: {app: each}
    spec:
      containers:
      - name: box
        image: ` + harness.BoxImage + `
        imagePullPolicy: Never
        command: [sleep, "100000"]
`

// TestFleetIsLikeAnAgent compares what a node of a fleet and a real agent have open at a server, each with one pod:
// connections, and watches of each resource.
func TestFleetIsLikeAnAgent(t *testing.T) {
	c := New(t, 1, 0)
	s := c.Servers[0]
	s.Apply(onEachNode)
	look := func() (map[string]int, int) { return c.metrics(s).watches, connections(t, s) }
	running := func(pods int) {
		harness.Eventually(t, soon, "its pod runs", func() error {
			list, err := c.Ask(s).CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{FieldSelector: "status.phase=" + string(corev1.PodRunning)})
			if err == nil && len(list.Items) != pods {
				err = fmt.Errorf("%d run", len(list.Items))
			}
			return err
		})
		time.Sleep(seconds("CORACLE_FLEET_LIKENESS", time.Minute)) // what begins later, and what ends again
	}
	askForSettings(t, c.Ask(s))
	running(0)
	none, noConnections := look()
	a := c.machine().NewAgent(s)
	a.AddBoxImage()
	a.Start()
	c.Agents = append(c.Agents, a)
	running(1)
	one, oneConnections := look()
	startFleet(t, c, fleet.Options{Nodes: 1, Members: 1})
	running(2)
	two, twoConnections := look()
	fmt.Printf("\n| open at the server | a real agent | a node of the fleet |\n| --- | --- | --- |\n")
	fmt.Printf("| connections | %d | %d |\n", oneConnections-noConnections, twoConnections-oneConnections)
	for _, name := range slices.Sorted(maps.Keys(two)) {
		really, here := one[name]-none[name], two[name]-one[name]
		if really == 0 && here == 0 {
			continue
		}
		fmt.Printf("| watches of %s | %d | %d |\n", name, really, here)
		testenv.True(t, really == here, "an agent has %d watches of %s, a node of the fleet %d", really, name, here)
	}
}

// askForSettings asks a server for a setting as a node does. From then on the server itself has a watch of each, which
// would count as the first node's.
func askForSettings(t *testing.T, client kubernetes.Interface) {
	t.Helper()
	stream := testenv.Must(client.CoreV1().RESTClient().Get().AbsPath(clustersettings.Path).Param(clustersettings.Parameter, clustersettings.Names()[0]).Stream(t.Context()))(t)
	defer stream.Close()
	testenv.NoError(t, testenv.Err(stream.Read(make([]byte, 1))))
}
