// SPDX-License-Identifier: Apache-2.0

// Package podstop stops the pods of a node whose machine goes down: containers in two waves with their preStop hooks,
// then sandboxes, then the mounts of their volumes.
//
// It speaks to the runtime alone and decides the order and the time. It never touches the API's objects: the next
// boot's kubelet starts the same pods again. Upstream's manager of shutdowns deletes them instead (docs/adr/0153).
//
// Its goroutines: one for each container, sandbox and request; a call that does not end is left behind.
package podstop

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crilabels "k8s.io/kubelet/pkg/types"
	podutil "k8s.io/kubernetes/pkg/api/v1/pod"
	kubelettypes "k8s.io/kubernetes/pkg/kubelet/types"
)

const (
	// secondWave is how much of the time is kept for critical pods, if that is no more than half of it.
	secondWave = 10 * time.Second
	// minGrace is the least time between a container's stop signal and its end, as the kubelet has it.
	minGrace = 2 * time.Second
	// killTimeout is how long the runtime may take to end a container after its time, or to answer another call.
	killTimeout = 5 * time.Second
	// sandboxTimeout bounds the end of all sandboxes.
	sandboxTimeout = 10 * time.Second
	// killRounds is how many times containers that run in the end are killed.
	killRounds = 3
)

// The annotations that the kubelet gives containers to restore them by (kuberuntime/labels.go).
const (
	graceAnnotation   = "io.kubernetes.pod.terminationGracePeriod"
	preStopAnnotation = "io.kubernetes.container.preStopHandler"
	portsAnnotation   = "io.kubernetes.container.ports"
)

// Runtime has the calls of CRI's runtime service that a stop makes.
type Runtime interface {
	ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error)
	ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error)
	PodSandboxStatus(context.Context, *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error)
	ExecSync(context.Context, *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error)
	StopContainer(context.Context, *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error)
	StopPodSandbox(context.Context, *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error)
}

// Options describe a stop. All are required.
type Options struct {
	Runtime Runtime
	// Within is the time for all containers. Sandboxes and a stuck runtime may take up to half a minute more.
	Within time.Duration
	// Pod returns the pod with this UID as the kubelet knows it, or nil. Without it, pods of kube-system are critical.
	Pod    func(uid string) *corev1.Pod
	Logger *slog.Logger
}

// Stop stops all containers and sandboxes of the runtime and returns how many containers ran. An error names those that
// may still run.
func Stop(ctx context.Context, o Options) (containers int, err error) {
	deadline := time.Now().Add(o.Within)
	running, err := o.running(ctx)
	if err != nil {
		return 0, err
	}
	first, second := o.splitWaves(running)
	o.stopWave(ctx, first, deadline.Add(-min(secondWave, o.Within/2)))
	o.stopWave(ctx, second, deadline)
	err = o.stopSandboxes(ctx)
	return len(running), errors.Join(o.killRest(ctx), err)
}

// running lists the containers that run, or may run.
func (o Options) running(ctx context.Context) ([]*runtimeapi.Container, error) {
	answer, err := bounded(ctx, killTimeout, o.Runtime.ListContainers, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	var out []*runtimeapi.Container
	for _, c := range answer.Containers {
		if c.State == runtimeapi.ContainerState_CONTAINER_RUNNING || c.State == runtimeapi.ContainerState_CONTAINER_UNKNOWN {
			out = append(out, c)
		}
	}
	return out, nil
}

// pod is a pod's UID and its containers.
type pod struct {
	uid        string
	containers []*runtimeapi.Container
}

// splitWaves groups containers by their pods, and these by whether others need them: pods of kube-system and critical
// pods come last.
func (o Options) splitWaves(containers []*runtimeapi.Container) (first, second []*pod) {
	pods := map[string]*pod{}
	for _, c := range containers {
		uid := c.Labels[crilabels.KubernetesPodUIDLabel]
		p := pods[uid]
		if p == nil {
			p = &pod{uid: uid}
			pods[uid] = p
			spec := o.Pod(uid)
			namespace := c.Labels[crilabels.KubernetesPodNamespaceLabel]
			if namespace == metav1.NamespaceSystem || spec != nil && kubelettypes.IsCriticalPod(spec) {
				second = append(second, p)
			} else {
				first = append(first, p)
			}
		}
		p.containers = append(p.containers, c)
	}
	return first, second
}

// stopWave stops the containers of pods and returns when all have ended, or the runtime has had its time.
func (o Options) stopWave(ctx context.Context, pods []*pod, until time.Time) {
	var stopping sync.WaitGroup
	for _, p := range pods {
		stopping.Go(func() {
			for _, containers := range o.order(p) {
				o.stopAll(ctx, containers, until)
			}
		})
	}
	stopping.Wait()
}

// order returns a pod's containers in the order of their end: its sidecars (KEP-753) end after the others, the last one
// first.
func (o Options) order(p *pod) (steps [][]*runtimeapi.Container) {
	spec := o.Pod(p.uid)
	if spec == nil {
		return [][]*runtimeapi.Container{p.containers}
	}
	sidecars := map[string][]*runtimeapi.Container{}
	for _, c := range spec.Spec.InitContainers {
		if podutil.IsRestartableInitContainer(&c) {
			sidecars[c.Name] = nil
		}
	}
	var others []*runtimeapi.Container
	for _, c := range p.containers {
		name := c.Labels[crilabels.KubernetesContainerNameLabel]
		if _, is := sidecars[name]; is {
			sidecars[name] = append(sidecars[name], c)
		} else {
			others = append(others, c)
		}
	}
	steps = append(steps, others)
	for i := len(spec.Spec.InitContainers) - 1; i >= 0; i-- {
		if c := sidecars[spec.Spec.InitContainers[i].Name]; c != nil {
			steps = append(steps, c)
		}
	}
	return steps
}

func (o Options) stopAll(ctx context.Context, containers []*runtimeapi.Container, until time.Time) {
	var stopping sync.WaitGroup
	for _, c := range containers {
		stopping.Go(func() { o.stopContainer(ctx, c, until) })
	}
	stopping.Wait()
}

// stopContainer runs a container's preStop hook and stops it, within its pod's grace period and until the end of its
// wave.
func (o Options) stopContainer(ctx context.Context, c *runtimeapi.Container, until time.Time) {
	began := time.Now()
	grace := min(gracePeriod(c), until.Sub(began))
	if err := o.preStop(ctx, c, grace); err != nil {
		o.Logger.Warn("the preStop hook of a container failed; it is stopped all the same", "container", nameOf(c), "error", err)
	}
	grace = max(grace-time.Since(began), minGrace)
	request := &runtimeapi.StopContainerRequest{ContainerId: c.Id, Timeout: int64(math.Ceil(grace.Seconds()))}
	if _, err := bounded(ctx, grace+killTimeout, o.Runtime.StopContainer, request); err != nil {
		o.Logger.Warn("a container could not be stopped", "container", nameOf(c), "error", err)
		return
	}
	o.Logger.Info("stopped a container", "container", nameOf(c), "after", time.Since(began).Round(time.Millisecond))
}

// gracePeriod returns the grace period of a container's pod.
func gracePeriod(c *runtimeapi.Container) time.Duration {
	seconds, err := strconv.ParseInt(c.Annotations[graceAnnotation], 10, 64)
	if err != nil {
		seconds = corev1.DefaultTerminationGracePeriodSeconds
	}
	return time.Duration(min(seconds, math.MaxInt64/int64(time.Second))) * time.Second
}

// stopSandboxes stops all sandboxes. The runtime ends what still runs in them.
func (o Options) stopSandboxes(ctx context.Context) error {
	answer, err := bounded(ctx, killTimeout, o.Runtime.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return fmt.Errorf("list sandboxes: %w", err)
	}
	errs := make([]error, len(answer.Items))
	var stopping sync.WaitGroup
	for i, s := range answer.Items {
		stopping.Go(func() {
			_, errs[i] = bounded(ctx, sandboxTimeout, o.Runtime.StopPodSandbox, &runtimeapi.StopPodSandboxRequest{PodSandboxId: s.Id})
			if errs[i] != nil {
				errs[i] = fmt.Errorf("stop the sandbox of %s/%s: %w", s.Metadata.GetNamespace(), s.Metadata.GetName(), errs[i])
			}
		})
	}
	stopping.Wait()
	return errors.Join(errs...)
}

// killRest kills the containers that run in the end, and returns an error that names those that it could not kill.
func (o Options) killRest(ctx context.Context) error {
	for round := 0; ; round++ {
		rest, err := o.running(ctx)
		if err != nil || len(rest) == 0 {
			return err
		}
		if round == killRounds {
			var errs []error
			for _, c := range rest {
				errs = append(errs, fmt.Errorf("container %s still runs", nameOf(c)))
			}
			return errors.Join(errs...)
		}
		var killing sync.WaitGroup
		for _, c := range rest {
			killing.Go(func() {
				_, err := bounded(ctx, killTimeout, o.Runtime.StopContainer, &runtimeapi.StopContainerRequest{ContainerId: c.Id})
				if err != nil {
					o.Logger.Warn("a container could not be killed", "container", nameOf(c), "error", err)
				}
			})
		}
		killing.Wait()
	}
}

// nameOf names a container for messages.
func nameOf(c *runtimeapi.Container) string {
	l := c.Labels
	return l[crilabels.KubernetesPodNamespaceLabel] + "/" + l[crilabels.KubernetesPodNameLabel] + "/" +
		l[crilabels.KubernetesContainerNameLabel]
}

// bounded makes a call and returns at the latest after atMost, even when the call does not end with its context: a
// runtime that is stuck must not keep the machine from going down.
func bounded[Q, A any](ctx context.Context, atMost time.Duration, call func(context.Context, Q) (A, error), question Q) (A, error) {
	ctx, cancel := context.WithTimeout(ctx, atMost)
	defer cancel()
	type result struct {
		answer A
		err    error
	}
	done := make(chan result, 1) // one: nothing receives it after atMost
	go func() {
		answer, err := call(ctx, question)
		done <- result{answer, err}
	}()
	select {
	case r := <-done:
		return r.answer, r.err
	case <-ctx.Done():
		var none A
		return none, ctx.Err()
	}
}
