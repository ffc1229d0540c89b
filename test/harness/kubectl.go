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
		_ = Reaching(func() error { return testenv.Err(s.TryKubectl("delete", "namespace", name, "--wait=false")) })
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

// Reaching calls f, which runs kubectl, again while the server is too busy for a TLS handshake, for which kubectl gives
// it ten seconds: nothing was asked of it by then. It returns the error with which f ends otherwise.
func Reaching(f func() error) (err error) {
	for began := time.Now(); time.Since(began) < Soon; {
		if err = f(); err == nil || !strings.Contains(err.Error(), "TLS handshake timeout") {
			return err
		}
	}
	return err
}

// Kubectl runs kubectl in the namespace and fails the test when it fails.
func (k *Kube) Kubectl(args ...string) (out string) {
	k.T.Helper()
	testenv.NoError(k.T, Reaching(func() (err error) {
		out, err = k.Try(args...)
		return err
	}))
	return out
}

// Refused waits until kubectl fails and says so, and fails the test if it succeeds: an error of a busy server, which is
// too late with its answer, says something else.
func (k *Kube) Refused(want string, args ...string) {
	k.T.Helper()
	Eventually(k.T, Soon, fmt.Sprintf("kubectl %s says %q", strings.Join(args, " "), want), func() error {
		out, err := k.Try(args...)
		testenv.Require(k.T, err != nil, "kubectl %s succeeds, want an error that says %q: %s", strings.Join(args, " "), want, out)
		if strings.Contains(err.Error(), want) {
			return nil
		}
		return err
	})
}

// Apply applies a manifest given as text.
func (k *Kube) Apply(manifest string) {
	k.T.Helper()
	testenv.NoError(k.T, Reaching(func() error {
		return Succeeds(k.TryApply(manifest))
	}))
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
		return Exactly(want)(k.Try(args...))
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
