// SPDX-License-Identifier: Apache-2.0

package term

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

// nowhere is a configuration that no test sends a request with.
var nowhere = &rest.Config{Host: "http://192.0.2.1"}

func TestRunWaitsForGoroutinesThatNobodyElseWaitsFor(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	release, ended := make(chan struct{}), make(chan struct{})
	part := func(ctx context.Context, _ *Term) error {
		go func() {
			go func() { // a grandchild is the term's as well
				defer close(ended)
				<-release
			}()
		}()
		cancel()
		return nil
	}
	done := make(chan error)
	go func() { done <- Run(ctx, Options{Config: nowhere}, part) }()
	select {
	case err := <-done:
		t.Fatalf("it returned %v while a goroutine ran", err)
	case <-time.After(50 * time.Millisecond): // it must not return, however long one waits
	}
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
	<-ended
}

func TestRunGivesUpOnStragglersAndShowsThem(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	release := make(chan struct{})
	defer close(release)
	err := Run(ctx, Options{Config: nowhere, Patience: 50 * time.Millisecond}, func(context.Context, *Term) error {
		go straggle(release)
		cancel()
		return nil
	})
	if !errors.Is(err, ErrStragglers) || !strings.Contains(err.Error(), "term.straggle") {
		t.Errorf("got %v", err)
	}
}

func straggle(release <-chan struct{}) { <-release }

func TestRunGivesUpOnAPartThatHangs(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	release := make(chan struct{})
	err := Run(ctx, Options{Config: nowhere, Patience: 50 * time.Millisecond}, func(context.Context, *Term) error {
		cancel()
		straggle(release)
		return nil
	})
	if !errors.Is(err, ErrStragglers) {
		t.Errorf("got %v", err)
	}
	_, _, err = start(t.Context(), Options{Config: nowhere})
	if err == nil || !strings.Contains(err.Error(), "previous term") {
		t.Errorf("another term beside the one that hangs: %v", err)
	}
	close(release)
	for { // the hung term lets go of its informers now
		again, _, err := start(t.Context(), Options{Config: nowhere})
		if err == nil {
			again.Informers.Shutdown()
			return
		}
		runtime.Gosched()
	}
}

func TestAFailingPartEndsTheTerm(t *testing.T) {
	failure := errors.New("no rudder")
	err := Run(t.Context(), Options{Config: nowhere},
		func(context.Context, *Term) error { return failure },
		func(ctx context.Context, t *Term) error {
			if t.StartInformers(ctx) {
				return errors.New("the informers started, though a part never called for them")
			}
			<-ctx.Done()
			return nil
		})
	if !errors.Is(err, failure) || strings.Contains(err.Error(), "informers started") {
		t.Errorf("got %v", err)
	}
}

func TestTermsFollowOneAnother(t *testing.T) {
	for range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		err := Run(ctx, Options{Config: nowhere}, func(ctx context.Context, t *Term) error {
			if !t.StartInformers(ctx) {
				return errors.New("the informers did not start")
			}
			cancel()
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// TestTheServersSideIsNotCounted keeps a connection open beyond the term, as a transport does.
func TestTheServersSideIsNotCounted(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"kind":"NamespaceList","apiVersion":"v1","items":[]}`))
	}))
	defer server.Close()
	ctx, cancel := context.WithCancel(t.Context())
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	config := &rest.Config{Host: server.URL, Transport: transport}
	err := Run(ctx, Options{Config: config, Patience: time.Second}, func(ctx context.Context, t *Term) error {
		defer cancel()
		_, err := t.Client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestTrimDropsManagedFields(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "m"}}}}
	if _, err := Trim(pod); err != nil || pod.ManagedFields != nil || pod.Name != "p" {
		t.Errorf("got %+v, %v", pod, err)
	}
}
