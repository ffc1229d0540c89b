// SPDX-License-Identifier: Apache-2.0

package podstop

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crilabels "k8s.io/kubelet/pkg/types"
	kubecontainer "k8s.io/kubernetes/pkg/kubelet/container"
	"k8s.io/kubernetes/pkg/kubelet/lifecycle"
	httpprobe "k8s.io/kubernetes/pkg/probe/http"
)

// preStop runs a container's preStop hook for at most the given time, by upstream's own code. The hook is in an
// annotation, from which the kubelet restores it too.
func (o Options) preStop(ctx context.Context, c *runtimeapi.Container, atMost time.Duration) error {
	text, found := c.Annotations[preStopAnnotation]
	if !found || atMost <= 0 {
		return nil
	}
	var hook corev1.LifecycleHandler
	if err := json.Unmarshal([]byte(text), &hook); err != nil {
		return fmt.Errorf("decode the hook: %w", err)
	}
	pod, container := podForHook(c)
	if hook.HTTPGet != nil && hook.HTTPGet.Host == "" {
		hook.HTTPGet.Host = o.address(ctx, c.PodSandboxId)
	}
	client := &http.Client{
		Timeout:       atMost,
		Transport:     &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, // as the kubelet: no authority is known
		CheckRedirect: httpprobe.RedirectChecker(false),
	}
	defer client.CloseIdleConnections()
	runner := lifecycle.NewHandlerRunner(client, commands{o.Runtime, atMost}, nil, nil)
	run := func(ctx context.Context, hook *corev1.LifecycleHandler) (string, error) {
		return runner.Run(ctx, kubecontainer.ContainerID{ID: c.Id}, pod, container, hook)
	}
	_, err := bounded(ctx, atMost, run, &hook)
	return err
}

// podForHook returns as much of a pod and its container as a hook needs: names, and the ports that a hook may name.
func podForHook(c *runtimeapi.Container) (*corev1.Pod, *corev1.Container) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name: c.Labels[crilabels.KubernetesPodNameLabel], Namespace: c.Labels[crilabels.KubernetesPodNamespaceLabel],
		UID: types.UID(c.Labels[crilabels.KubernetesPodUIDLabel]),
	}}
	container := &corev1.Container{Name: c.Labels[crilabels.KubernetesContainerNameLabel]}
	_ = json.Unmarshal([]byte(c.Annotations[portsAnnotation]), &container.Ports) // missing means that there are none
	return pod, container
}

// address returns the address of a sandbox. A pod in the host's network is at loopback.
func (o Options) address(ctx context.Context, sandbox string) string {
	answer, err := bounded(ctx, killTimeout, o.Runtime.PodSandboxStatus, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: sandbox})
	if ip := answer.GetStatus().GetNetwork().GetIp(); err == nil && ip != "" {
		return ip
	}
	return "127.0.0.1"
}

// commands runs the commands of hooks in containers.
type commands struct {
	runtime Runtime
	atMost  time.Duration
}

// RunInContainer implements upstream's CommandRunner.
func (r commands) RunInContainer(ctx context.Context, id kubecontainer.ContainerID, command []string, _ time.Duration) ([]byte, error) {
	answer, err := r.runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{
		ContainerId: id.ID, Cmd: command, Timeout: max(int64(r.atMost.Seconds()), 1),
	})
	if err != nil {
		return nil, err
	}
	output := append(answer.Stdout, answer.Stderr...)
	if answer.ExitCode != 0 {
		return output, fmt.Errorf("the command ended with exit code %d: %s", answer.ExitCode, output)
	}
	return output, nil
}
