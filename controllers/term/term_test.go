// SPDX-License-Identifier: Apache-2.0

package term_test

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

	"github.com/coracle-k8s/coracle/controllers/term"
	"github.com/coracle-k8s/coracle/server/apiserver/memtransport"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// nowhere is a configuration that no test sends a request with.
var nowhere = &rest.Config{Host: "http://192.0.2.1"}

func TestRunWaitsForUnownedGoroutines(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	release, ended := make(chan struct{}), make(chan struct{})
	part := func(ctx context.Context, _ *term.Term) error {
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
	go func() { done <- term.Run(ctx, term.Options{Config: nowhere}, part) }()
	select {
	case err := <-done:
		t.Fatalf("it returned %v while a goroutine ran", err)
	case <-time.After(50 * time.Millisecond): // it must not return, however long one waits
	}
	close(release)
	testenv.Check(t, <-done)
	<-ended
}

func TestRunGivesUpOnStragglersAndShowsThem(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	release := make(chan struct{})
	defer close(release)
	err := term.Run(ctx, term.Options{Config: nowhere, EndTimeout: 50 * time.Millisecond}, func(context.Context, *term.Term) error {
		go straggle(release)
		cancel()
		return nil
	})
	testenv.True(t, errors.Is(err, term.ErrStragglers) && strings.Contains(err.Error(), "term_test.straggle"), "got %v", err)
}

func straggle(release <-chan struct{}) { <-release }

func TestRunGivesUpOnAStuckComponent(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	release := make(chan struct{})
	err := term.Run(ctx, term.Options{Config: nowhere, EndTimeout: 50 * time.Millisecond}, func(context.Context, *term.Term) error {
		cancel()
		straggle(release)
		return nil
	})
	testenv.ErrorIs(t, err, term.ErrStragglers)
	_, _, err = term.Start(t.Context(), term.Options{Config: nowhere})
	testenv.WantError(t, err, "previous term")
	close(release)
	informersAreFree(t)
}

// informersAreFree waits until a term that Run gave up on has ended nevertheless and let go of its informers.
func informersAreFree(t *testing.T) {
	for {
		again, _, err := term.Start(t.Context(), term.Options{Config: nowhere})
		if err == nil {
			again.Informers.Shutdown()
			return
		}
		runtime.Gosched()
	}
}

func TestAFailingPartEndsTheTerm(t *testing.T) {
	failure := errors.New("no rudder")
	err := term.Run(t.Context(), term.Options{Config: nowhere},
		func(context.Context, *term.Term) error { return failure },
		func(ctx context.Context, t *term.Term) error {
			if t.StartInformers(ctx) {
				return errors.New("the informers started, though a part never called for them")
			}
			<-ctx.Done()
			return nil
		})
	testenv.False(t, !errors.Is(err, failure) || strings.Contains(err.Error(), "informers started"), "got %v", err)
}

func TestTermsFollowOneAnother(t *testing.T) {
	for range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		err := term.Run(ctx, term.Options{Config: nowhere}, func(ctx context.Context, t *term.Term) error {
			if !t.StartInformers(ctx) {
				return errors.New("the informers did not start")
			}
			cancel()
			return nil
		})
		testenv.Check(t, err)
	}
}

// handledBy is a configuration of which every request is handled in this process by a function, until the test ends.
func handledBy(t *testing.T, h http.HandlerFunc) *rest.Config {
	tr := memtransport.New(memtransport.Options{})
	tr.SetHandler(h)
	t.Cleanup(func() { testenv.Check(t, tr.Close(context.Background())) })
	return &rest.Config{Host: "https://memory", Transport: tr}
}

// list makes a request that does not end with the term, as some of upstream's do not.
func list(t *term.Term) {
	_, _ = t.Client.CoreV1().Namespaces().List(context.Background(), metav1.ListOptions{})
}

// A goroutine that waits for an answer when the term ends is the term's.
func TestRunWaitsForGoroutinesInsideRequests(t *testing.T) {
	inside, release := make(chan struct{}), make(chan struct{})
	config := handledBy(t, func(http.ResponseWriter, *http.Request) { close(inside); <-release })
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	done := make(chan error)
	go func() {
		done <- term.Run(ctx, term.Options{Config: config}, func(_ context.Context, t *term.Term) error {
			go func() {
				defer close(ended)
				list(t)
			}()
			<-inside
			cancel()
			return nil
		})
	}()
	select {
	case err := <-done:
		close(release)
		t.Fatalf("it returned %v while a goroutine waited for an answer", err)
	case <-time.After(50 * time.Millisecond): // it must not return, however long one waits
	}
	close(release)
	testenv.Check(t, <-done)
	select {
	case <-ended:
	default:
		t.Error("it returned before the goroutine did")
	}
}

// A part that waits for an answer for longer than Run is patient is a part that is stuck.
func TestRunGivesUpOnAPartInsideARequest(t *testing.T) {
	inside, release := make(chan struct{}), make(chan struct{})
	config := handledBy(t, func(http.ResponseWriter, *http.Request) { close(inside); <-release })
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-inside; cancel() }()
	err := term.Run(ctx, term.Options{Config: config, EndTimeout: 50 * time.Millisecond}, func(_ context.Context, t *term.Term) error {
		list(t)
		return nil
	})
	testenv.True(t, errors.Is(err, term.ErrStragglers) && strings.Contains(err.Error(), "inside requests"), "got %v", err)
	close(release)
	informersAreFree(t)
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
	err := term.Run(ctx, term.Options{Config: config, EndTimeout: time.Minute}, func(ctx context.Context, t *term.Term) error {
		defer cancel()
		_, err := t.Client.CoreV1().Namespaces().List(ctx, metav1.ListOptions{})
		return err
	})
	testenv.Check(t, err)
}

func TestTrimDropsManagedFields(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p", ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "m"}}}}
	if _, err := term.Trim(pod); err != nil || pod.ManagedFields != nil || pod.Name != "p" {
		t.Errorf("got %+v, %v", pod, err)
	}
}
