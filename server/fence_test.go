// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/controllers/term"
	"github.com/coracle-k8s/coracle/server/leading"
	"github.com/coracle-k8s/coracle/server/storeusage"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestWritesOfEndedTermAreRefused runs a part of a leader in the store's term and in one that is over: there its writes
// are refused by the store, and what the store does not see by the API server.
func TestWritesOfEndedTermAreRefused(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a store and an API server; -short leaves it out")
	}
	ctx := t.Context()
	s := testenv.Must(New(ctx, options(t.TempDir())))(t)
	defer func() { testenv.Check(t, s.Close()) }()
	store, others, err := s.openStore(ctx)
	testenv.NoError(t, err)
	defer func() { testenv.Check(t, store.Close(context.Background())) }()
	testenv.NoError(t, s.waitStore(ctx, store, others))
	api := testenv.Must(s.newAPI(ctx, store, storeusage.NewEvents(store.View, store.Health().Quota, s.o.Clock.Now)))(t)
	serving, stop := context.WithCancel(ctx)
	ended := make(chan error, 1) // one: it ends whether or not the test still listens
	go func() { ended <- api.Run(serving) }()
	defer func() {
		stop()
		testenv.Check(t, <-ended)
	}()
	select {
	case <-api.Ready():
	case err := <-ended:
		t.Fatal(err)
	}
	admin := testenv.Must(kubernetes.NewForConfig(api.LoopbackConfig()))(t)
	testenv.Must(
		admin.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "fenced"}}, metav1.CreateOptions{}))(t)
	testenv.NoError(t, testenv.Err(admin.CoreV1().ServiceAccounts("fenced").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "user"}}, metav1.CreateOptions{})))

	issue := func(ctx context.Context, t *term.Term) error {
		_, err := t.Client.CoreV1().ServiceAccounts("fenced").CreateToken(ctx, "user", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
		return err
	}
	write := func(ctx context.Context, t *term.Term) error {
		_, err := t.Client.CoreV1().ConfigMaps("fenced").Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "of-a-term-"}}, metav1.CreateOptions{})
		return err
	}
	now := store.Status().Leadership.Term
	for name, do := range map[string]term.Part{"a token": issue, "a write": write} {
		testenv.Check(t, leading.RunTerm(ctx, api, s.log, now, do), "%s in the store's term", name)
		err := leading.RunTerm(ctx, api, s.log, now-1, func(ctx context.Context, t *term.Term) error {
			if do(ctx, t) == nil {
				return errors.New("it was done")
			}
			return nil // the refusal ends the request as it ends the term
		})
		testenv.True(t, errors.Is(err, leading.ErrTermOver) && !strings.Contains(err.Error(), "it was done"),
			"%s in a term that is over: %v", name, err)
	}
}
