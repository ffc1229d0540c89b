// SPDX-License-Identifier: Apache-2.0

package servicelb

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/record"

	"github.com/coracle-k8s/coracle/test/services/lb"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// planAndWrite plans and writes until nothing is left to be written.
func planAndWrite(s *State) {
	for range 3 {
		plan := Plan(s)
		for _, svc := range s.Services {
			status, _ := StatusOf(svc, plan[serviceKey(svc)])
			svc.Status = *status
		}
	}
}

// flagged are the pools of a cluster that was given these addresses by flag.
func flagged(texts ...string) []Pool {
	pools, _ := Pools(lb.Ranges(texts...), nil, nil)
	return pools
}

// run runs a controller until the function that it returns is called.
func run(t *testing.T, client *fake.Clientset, disabled bool, change ...func(*Options)) (events chan string, stop func()) {
	t.Helper()
	factory := informers.NewSharedInformerFactory(client, 0)
	recorder := record.NewFakeRecorder(1000)
	o := Options{Client: client, Informers: factory, Recorder: recorder, Disabled: disabled}
	for _, f := range change {
		f(&o)
	}
	c := testenv.Must(New(o))(t)
	ctx, cancel := context.WithCancel(context.Background())
	factory.Start(ctx.Done())
	for _, resource := range []string{"services", "nodes", "pods"} {
		awaitWatch(t, client, resource)
	}
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	return recorder.Events, func() {
		cancel()
		testenv.Check(t, <-done)
		factory.Shutdown()
	}
}

func awaitAddresses(t *testing.T, client *fake.Clientset, service, want string) {
	t.Helper()
	testenv.Eventually(t, 2*time.Minute, service+" has "+want, func() error {
		s, err := client.CoreV1().Services("default").Get(t.Context(), service, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if got := ingressText(s.Status.LoadBalancer); got != want {
			return fmt.Errorf("it has %s", got)
		}
		return nil
	})
}

// awaitWatch waits until a resource is watched: a fake tells of nothing that was before.
func awaitWatch(t *testing.T, client interface{ Actions() []clienttesting.Action }, resource string) {
	t.Helper()
	testenv.Eventually(t, 2*time.Minute, resource+" are watched", func() error {
		if !slices.ContainsFunc(client.Actions(), func(a clienttesting.Action) bool { return a.Matches("watch", resource) }) {
			return errors.New("not yet")
		}
		return nil
	})
}
