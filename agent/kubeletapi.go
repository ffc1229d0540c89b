// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// askEvery is the interval between requests to the API server through the kubelet's connection. askAgain is the
	// interval after a failed one.
	askEvery, askAgain = 20 * time.Second, 2 * time.Second
	// askTimeout limits the duration of one request.
	askTimeout = 5 * time.Second
	// withoutAPIFor is how long a kubelet may be without the API while an API server replies to this node through
	// another connection. It is upstream's node-monitor-grace-period before 1.32.
	withoutAPIFor = 40 * time.Second
	// refusedOften is how many times in a row the API server has to refuse the kubelet's credentials before the node
	// reports that to the servers.
	refusedOften = 2

	reasonWithoutAPI = "KubeletWithoutAPI"
)

// kubeletAPI reports a node as not ready if its kubelet alone has lost the API. Such a kubelet cannot report that
// itself, and servers still receive messages of the node. Servers that are down are no such case.
type kubeletAPI struct {
	tryOwn     func(context.Context) error                 // sends a request the way the kubelet does
	tryAnother func(context.Context) error                 // the same through another connection; nil if an API server replies at all
	report     func(ctx context.Context, why string) error // reports through another connection that the node is not ready
	refused    func(bool)                                  // is called with whether the API server refuses the credentials
	regain     func()                                      // is called when the kubelet has the API after a report
	log        *slog.Logger
}

// run sends requests until ctx is done.
func (k *kubeletAPI) run(ctx context.Context) {
	with, refusals, reported := time.Now(), 0, false // with: the latest time at which not only the kubelet lacked the API
	var failed error                                 // the error of the last request of tryOwn, if it is still to be reported
	left := func() time.Duration { return max(withoutAPIFor-time.Since(with), 0) }
	for ctx.Err() == nil {
		if failed == nil || reported || left() > 0 {
			timeout := askTimeout
			if l := left(); l > 0 && !reported { // so that it has ended when it is time to report
				timeout = min(timeout, l)
			}
			failed = withTimeout(ctx, timeout, k.tryOwn)
			if refusals++; !refused(failed) {
				refusals = 0
			}
		}
		if failed == nil {
			if k.refused(false); reported {
				k.log.Info("the kubelet reaches the API server again")
				k.regain()
			}
			with, reported = time.Now(), false
			timers.Sleep(ctx, timers.Until(askEvery))
			continue
		}
		if refusals == refusedOften {
			k.log.Error("the API server rejects the kubelet's requests; the node's pods keep running, and the node is not ready until they are accepted",
				"reason", failed)
			k.refused(true)
		}
		switch {
		case withTimeout(ctx, askTimeout, k.tryAnother) != nil: // no API server answers this machine
			with = time.Now()
		case !reported && left() == 0:
			why := "the kubelet does not reach the API server, although this machine reaches it in another way: " + failed.Error() +
				". Check whether a firewall rule blocks it, and whether another program has that port (ss -lntp)"
			err := withTimeout(ctx, askTimeout, func(ctx context.Context) error { return k.report(ctx, why) })
			if reported = err == nil; reported {
				k.log.Error("the node is not ready; its pods keep running", "reason", why)
			}
			failed = nil // tryOwn is called again before the next report
		}
		pause := askAgain
		if l := left(); l > 0 {
			pause = min(pause, l)
		}
		timers.Sleep(ctx, pause)
	}
}

func withTimeout(ctx context.Context, d time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return f(ctx)
}

// kubeletAPI returns the check of this node's kubelet.
func (o Options) kubeletAPI(own *readyUnknown) (*kubeletAPI, error) {
	config, err := clientcmd.BuildConfigFromFlags("", o.KubeletKubeconfig)
	if err != nil {
		return nil, fmt.Errorf("agent: read the node's credentials: %w", err)
	}
	node := o.statusPart("node")
	return &kubeletAPI{
		tryOwn: func(ctx context.Context) error { return o.askLease(ctx, config) },
		tryAnother: func(ctx context.Context) error {
			return o.anotherWay(func(c *rest.Config) error {
				if err := o.askLease(ctx, c); !refused(err) {
					return err
				}
				return nil
			})
		},
		report: func(ctx context.Context, why string) error {
			err := o.anotherWay(func(c *rest.Config) error { return o.reportNotReady(ctx, c, why) })
			if err == nil {
				node.Set(status.Degraded, why)
			}
			return err
		},
		refused: o.refused.Store,
		regain: func() {
			node.Set(status.Running, "")
			own.mayChange.Send()
		},
		log: o.Logger,
	}, nil
}

// anotherWay calls f with each connection to the API in turn, except the kubelet's, until f succeeds.
func (o Options) anotherWay(f func(*rest.Config) error) error {
	errs := []error{errors.New("agent: no other way to the API server")}
	for _, c := range o.FallbackConfigs() {
		err := f(c)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// askLease requests the Lease that the kubelet renews: it is small, and the server has it in memory.
func (o Options) askLease(ctx context.Context, c *rest.Config) error {
	client, err := corev1client.NewForConfig(c)
	if err != nil {
		return fmt.Errorf("agent: make the node's client: %w", err)
	}
	err = client.RESTClient().Get().AbsPath("/apis/coordination.k8s.io/v1/namespaces", corev1.NamespaceNodeLease, "leases", o.Name).
		Param("resourceVersion", "0").Do(ctx).Error()
	if apierrors.IsNotFound(err) { // the kubelet will make it
		return nil
	}
	return err
}

// reportNotReady writes the node's Ready condition, which the kubelet cannot do.
func (o Options) reportNotReady(ctx context.Context, c *rest.Config, why string) error {
	client, err := corev1client.NewForConfig(c)
	if err != nil {
		return fmt.Errorf("agent: make the node's client: %w", err)
	}
	now := metav1.Now()
	body, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []corev1.NodeCondition{{
		Type: corev1.NodeReady, Status: corev1.ConditionFalse, Reason: reasonWithoutAPI, Message: why,
		LastHeartbeatTime: now, LastTransitionTime: now,
	}}}})
	if err != nil {
		return fmt.Errorf("agent: report the node: %w", err)
	}
	_, err = client.Nodes().PatchStatus(ctx, o.Name, body)
	return err
}

// refused reports whether err says that an API server does not accept the credentials.
func refused(err error) bool { return apierrors.IsUnauthorized(err) || apierrors.IsForbidden(err) }
