// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// patience is how long anything may take: the machine may be busy with other things.
const patience = 5 * time.Minute

// until looks until f is true. What f cannot find yet is no error.
func until(ctx context.Context, what string, f func(context.Context) (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		ok, err := f(ctx)
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("%s: %w", what, err)
		}
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: not within %v", what, patience)
		case <-time.After(100 * time.Millisecond): // between two looks
		}
	}
}

// deleted is until's condition that get finds nothing any more.
func deleted[T any](get func(context.Context, string, metav1.GetOptions) (T, error), name string) func(context.Context) (bool, error) {
	return func(ctx context.Context) (bool, error) {
		_, err := get(ctx, name, metav1.GetOptions{})
		return apierrors.IsNotFound(err), err
	}
}

// opener is the part of every typed client that opens a watch.
type opener interface {
	Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error)
}

// watching opens watches and reads them until the returned function is called.
func (c *churn) watching(ctx context.Context, sources ...opener) (stop func(), err error) {
	var opened []watch.Interface
	stop = func() {
		for _, w := range opened {
			w.Stop()
		}
	}
	for _, s := range sources {
		w, err := s.Watch(ctx, metav1.ListOptions{})
		if err != nil {
			stop()
			return nil, fmt.Errorf("watch: %w", err)
		}
		opened = append(opened, w)
		c.done.Watches.Add(1)
		go func() {
			for range w.ResultChan() { //nolint:revive // reading is all
			}
		}()
	}
	return stop, nil
}
