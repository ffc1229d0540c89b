// SPDX-License-Identifier: Apache-2.0

// Command churn fills a cluster with what a busy month, or upstream's conformance suite, leaves behind, and removes all
// of it again: namespaces with workloads whose pods run for a moment or never find a node, configuration, rights and
// quotas; CustomResourceDefinitions, each of a group of its own, with objects; admission policies, webhooks and API
// services; and watches on all of them. What the server's memory does afterwards is for others to look at.
//
//	churn -kubeconfig FILE -image IMAGE [-namespaces N] [-definitions N] [-running N] [-parallel N] [-seed N]
//
// It prints one JSON object of what it did. The choices follow from the seed, the timing does not.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	aggregator "k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset"
)

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "churn:", err)
		os.Exit(1)
	}
}

// options say how much to do.
type options struct {
	image                            string
	namespaces, definitions, running int
	parallel                         int
	seed                             uint64
}

// counts are what was done, for the report.
type counts struct {
	Namespaces, Pods, PodsRun, Objects  atomic.Int64
	Definitions, CustomObjects, Watches atomic.Int64
}

// churn is a run.
type churn struct {
	options
	client     kubernetes.Interface
	dynamic    dynamic.Interface
	extensions apiextensions.Interface
	aggregator aggregator.Interface
	prefix     string // of every name outside of namespaces
	done       counts
}

func run(ctx context.Context) error {
	var o options
	kubeconfig := flag.String("kubeconfig", "", "admin kubeconfig")
	flag.StringVar(&o.image, "image", "", "an image that is present, with a shell's `true`")
	flag.IntVar(&o.namespaces, "namespaces", 300, "namespaces, each made, filled and deleted")
	flag.IntVar(&o.definitions, "definitions", 100, "CustomResourceDefinitions, likewise")
	flag.IntVar(&o.running, "running", 300, "pods that run; each namespace has fifteen more that do not")
	flag.IntVar(&o.parallel, "parallel", 6, "namespaces or definitions at a time")
	flag.Uint64Var(&o.seed, "seed", 1, "for the choices")
	flag.Parse()
	config, err := clientcmd.BuildConfigFromFlags("", *kubeconfig)
	if err != nil {
		return err
	}
	config.QPS, config.Burst = -1, 0 // as fast as the server answers
	c := &churn{options: o, prefix: fmt.Sprintf("churn-%x", time.Now().UnixNano()&0xffffff)}
	if c.client, err = kubernetes.NewForConfig(config); err != nil {
		return err
	}
	if c.dynamic, err = dynamic.NewForConfig(config); err != nil {
		return err
	}
	if c.extensions, err = apiextensions.NewForConfig(config); err != nil {
		return err
	}
	if c.aggregator, err = aggregator.NewForConfig(config); err != nil {
		return err
	}
	began := time.Now()
	if err := c.all(ctx); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"namespaces": c.done.Namespaces.Load(), "pods": c.done.Pods.Load(), "podsRun": c.done.PodsRun.Load(),
		"objects": c.done.Objects.Load(), "definitions": c.done.Definitions.Load(),
		"customObjects": c.done.CustomObjects.Load(), "watches": c.done.Watches.Load(), "seconds": time.Since(began).Seconds(),
	})
}

// all does everything, some at a time, and returns the first error.
func (c *churn) all(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan func(context.Context) error) // no capacity: what waits is not begun
	var wg sync.WaitGroup
	for range c.parallel {
		wg.Go(func() {
			for f := range work {
				if err := f(ctx); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	feed(ctx, work, c.tasks())
	close(work)
	wg.Wait()
	return context.Cause(ctx)
}

func feed(ctx context.Context, work chan<- func(context.Context) error, tasks []func(context.Context) error) {
	for _, f := range tasks {
		select {
		case work <- f:
		case <-ctx.Done():
			return
		}
	}
}

// tasks are namespaces, definitions and admission objects in an order that the seed gives.
func (c *churn) tasks() []func(context.Context) error {
	var tasks []func(context.Context) error
	for i := range c.namespaces {
		pods := c.running*(i+1)/c.namespaces - c.running*i/c.namespaces
		tasks = append(tasks, func(ctx context.Context) error { return c.namespace(ctx, i, pods) })
	}
	for i := range c.definitions {
		tasks = append(tasks, func(ctx context.Context) error { return c.definition(ctx, i) })
	}
	for i := range c.definitions / 5 {
		tasks = append(tasks, func(ctx context.Context) error { return c.admission(ctx, i) })
	}
	r := rand.New(rand.NewPCG(c.seed, 0))
	r.Shuffle(len(tasks), func(i, j int) { tasks[i], tasks[j] = tasks[j], tasks[i] })
	return tasks
}
