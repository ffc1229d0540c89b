// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// Kube speaks kubectl for one (sub)test, in a Kubernetes namespace of its own when made by Namespace.
type Kube struct {
	*Server
	T  testing.TB
	NS string
}

// In returns a speaker for t without a namespace.
func (s *Server) In(t testing.TB) *Kube { return &Kube{Server: s, T: t} }

// Namespace makes a namespace that is deleted (without waiting) when t ends. It has its service account, without which
// the API server refuses pods.
func (s *Server) Namespace(t testing.TB, name string) *Kube {
	t.Helper()
	Eventually(t, Soon, "the namespace "+name, func() error { // kubectl gives a busy server 10 s for a handshake
		_, err := s.TryKubectl("create", "namespace", name)
		if err != nil && strings.Contains(err.Error(), "already exists") {
			err = nil
		}
		return err
	})
	k := &Kube{Server: s, T: t, NS: name}
	k.Await(3*time.Minute, "serviceaccount/default", "{.metadata.name}", "default")
	t.Cleanup(func() {
		if t.Failed() {
			k.Dump()
		}
		_, _ = s.TryKubectl("delete", "namespace", name, "--wait=false")
	})
	return k
}

// TryKubectlFrom runs kubectl on another machine of the site, with the admin's credentials, against this server.
func (s *Server) TryKubectlFrom(m *Machine, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	to := []string{"kubectl", "--kubeconfig", s.Kubeconfig, "--server", "https://" + net.JoinHostPort(s.IP, "6443"), "--request-timeout", "5s"}
	out, err := Output(m.Command(ctx, m.Coracle(), append(to, args...)...))
	return trim(out), err
}

func (k *Kube) args(args []string) []string {
	if k.NS == "" {
		return args
	}
	return append([]string{"-n", k.NS}, args...)
}

// Try runs kubectl in the namespace.
func (k *Kube) Try(args ...string) (string, error) {
	out, err := k.TryKubectl(k.args(args)...)
	return trim(out), err
}

// Kubectl runs kubectl in the namespace and fails the test when it fails.
func (k *Kube) Kubectl(args ...string) string {
	k.T.Helper()
	return testenv.Must(k.begun(func() (string, error) { return k.Try(args...) }))(k.T)
}

// Apply applies a manifest given as text.
func (k *Kube) Apply(manifest string) {
	k.T.Helper()
	if out, err := k.begun(func() (string, error) { return k.TryApply(manifest) }); err != nil {
		k.T.Fatalf("%v\n%s", err, out)
	}
}

// begun runs kubectl, and again where nothing of what it was to do has begun: it gives a server ten seconds for the
// handshake of TLS, before its first request, and so does a server that passes a request on. A busy one takes longer.
func (k *Kube) begun(kubectl func() (string, error)) (out string, err error) {
	k.T.Helper()
	Eventually(k.T, Soon, "a handshake with the server", func() error {
		if out, err = kubectl(); err != nil && strings.Contains(err.Error(), "TLS handshake timeout") {
			return err
		}
		return nil
	})
	return out, err
}

// TryApply applies a manifest given as text.
func (k *Kube) TryApply(manifest string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	c := k.KubectlCommand(ctx, k.args([]string{"apply", "-f", "-"})...)
	c.Stdin = strings.NewReader(manifest)
	return Output(c)
}

// Await polls `kubectl get ... -o jsonpath=path` until it prints want.
func (k *Kube) Await(within time.Duration, object, path, want string) {
	k.T.Helper()
	k.Becomes(within, want, "get", object, "-o", "jsonpath="+path)
}

// Becomes polls kubectl until it prints want and nothing else.
func (k *Kube) Becomes(within time.Duration, want string, args ...string) {
	k.T.Helper()
	Eventually(k.T, within, "kubectl "+strings.Join(args, " "), func() error {
		got, err := k.Try(args...)
		if err == nil && got != want {
			err = fmt.Errorf("is %q, want %q", got, want)
		}
		return err
	})
}

// Prints waits until kubectl prints every one of want: what comes after the deed, such as events, logs and what a pod
// writes.
func (k *Kube) Prints(want []string, args ...string) {
	k.T.Helper()
	Eventually(k.T, Soon, fmt.Sprintf("kubectl %s prints %q", strings.Join(args, " "), want), func() error {
		out, err := k.Try(args...)
		for _, w := range want {
			if err == nil && !strings.Contains(out, w) {
				err = fmt.Errorf("no %q in:\n%s", w, out)
			}
		}
		return err
	})
}

// Dump logs what is in the namespace, for a failed test. The events come last: a reader who has only the end of the
// output sees these.
func (k *Kube) Dump() {
	for _, args := range [][]string{{"describe", "pods"}, {"get", "all", "-o", "wide"}, {"get", "events", "--sort-by=.lastTimestamp"}} {
		out, err := k.Try(args...)
		k.T.Logf("$ kubectl %s\n%s\n%v", strings.Join(args, " "), out, err)
	}
}
