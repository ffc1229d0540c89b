// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
)

const (
	// apiTimeout is how long the API may take to answer a machine that goes down.
	apiTimeout = time.Second
	// unreadyTime bounds making all pods not ready, unreadyAtOnce is how many requests are sent at the same time.
	unreadyTime   = 5 * time.Second
	unreadyAtOnce = 16
	// reasonShutdown is the reason why the pods of a machine that goes down are not ready.
	reasonShutdown = "Shutdown"
)

// unready makes pods not ready, so that Services leave them before they are stopped. The Node stays ready: pods of a
// node that is not are replaced after their toleration, which a slow stop and a reboot may exceed. Without an API that
// answers at once it does nothing.
func (s *Shutdown) unready(ctx context.Context, pods map[string]*corev1.Pod) {
	client, err := coreClient(s.options.KubeletKubeconfig)
	if err == nil {
		asking, cancel := context.WithTimeout(ctx, apiTimeout)
		_, err = client.Nodes().Get(asking, s.options.Name, metav1.GetOptions{})
		cancel()
	}
	if err != nil {
		s.options.Logger.Info("agent: the API does not answer, so Services lose the pods only as they end", "error", err)
		return
	}
	makeAllUnready(ctx, client, pods, s.options.Logger)
}

func makeAllUnready(ctx context.Context, client corev1client.CoreV1Interface, pods map[string]*corev1.Pod, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(ctx, unreadyTime)
	defer cancel()
	places := make(chan struct{}, unreadyAtOnce)
	var sending sync.WaitGroup
	for _, p := range pods {
		if !podutil.IsPodReady(p) {
			continue
		}
		places <- struct{}{}
		sending.Go(func() {
			defer func() { <-places }()
			if err := makeUnready(ctx, client, p); err != nil {
				log.Info("agent: a pod is still ready for Services", "pod", p.Namespace+"/"+p.Name, "error", err)
			}
		})
	}
	sending.Wait()
}

// makeUnready writes that a pod is not ready, unless another pod has its name by now.
func makeUnready(ctx context.Context, client corev1client.CoreV1Interface, p *corev1.Pod) error {
	condition := corev1.PodCondition{
		Type: corev1.PodReady, Status: corev1.ConditionFalse, LastTransitionTime: metav1.Now(), Reason: reasonShutdown,
		Message: "the machine goes down; the pod starts again when it is back",
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"uid": p.UID},
		"status":   map[string]any{"conditions": []corev1.PodCondition{condition}},
	})
	if err != nil {
		return fmt.Errorf("encode the condition: %w", err)
	}
	_, err = client.Pods(p.Namespace).Patch(ctx, p.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}
