// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/test/harness"
)

const (
	// tryEvery is how often a write is begun while none is acknowledged, whatever became of the others. Those that wait
	// cost the servers time when they go on.
	tryEvery = 20 * time.Millisecond
	// failoverPatience is when a failover counts as failed.
	failoverPatience = time.Minute
)

// FirstWrite begins a write every few milliseconds, and returns when the first one of them was acknowledged.
func FirstWrite(ctx context.Context, api kubernetes.Interface, ns, prefix string) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, failoverPatience)
	defer cancel()
	acknowledged := make(chan time.Time, 1) // the first one
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel() // before waiting
	tick := time.NewTicker(tryEvery)
	defer tick.Stop()
	var mu sync.Mutex
	var last error
	for n := 0; ; n++ {
		all.Go(func() {
			object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", prefix, n)}}
			if _, err := api.CoreV1().ConfigMaps(ns).Create(ctx, object, metav1.CreateOptions{}); err != nil {
				mu.Lock()
				defer mu.Unlock()
				last = err
				return
			}
			select {
			case acknowledged <- time.Now():
			default:
			}
		})
		select {
		case at := <-acknowledged:
			return at, nil
		case <-ctx.Done():
			mu.Lock()
			defer mu.Unlock()
			return time.Time{}, errors.Join(ctx.Err(), last)
		case <-tick.C:
		}
	}
}

// Bound waits until the pods of a new Deployment, made through a server, have a node.
func Bound(ctx context.Context, api kubernetes.Interface, name string) error {
	replicas := int32(2)
	labels := map[string]string{"app": name}
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: appsv1.DeploymentSpec{
		Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: corev1.PodSpec{
			Containers: []corev1.Container{{Name: "c", Image: harness.BoxImage, ImagePullPolicy: corev1.PullNever, Command: []string{"testbox", "hold"}}},
		}},
	}}
	for ctx.Err() == nil {
		_, err := api.AppsV1().Deployments("default").Create(ctx, d, metav1.CreateOptions{})
		if err == nil || apierrors.IsAlreadyExists(err) { // an earlier try was done, although it had no answer
			break
		}
		pauseFor(ctx, retryAfter)
	}
	for ctx.Err() == nil {
		pods, err := api.CoreV1().Pods("default").List(ctx, metav1.ListOptions{LabelSelector: "app=" + name})
		n := 0
		for i := range pods.Items {
			if pods.Items[i].Spec.NodeName != "" {
				n++
			}
		}
		if err == nil && n == int(replicas) {
			return nil
		}
		pauseFor(ctx, retryAfter)
	}
	return errors.Join(errors.New("its pods have no node"), ctx.Err())
}
