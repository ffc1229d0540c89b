// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestStartAtServerThatIsNotReady: a node starts while the first of its servers answers, but has no leader, or refuses
// the node's certificate since its clock is wrong. It uses another one.
func TestStartAtServerThatIsNotReady(t *testing.T) {
	for _, code := range []int{http.StatusInternalServerError, http.StatusUnauthorized} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			t.Parallel()
			var another atomic.Bool
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				if !another.Load() {
					w.WriteHeader(code)
				}
			}))
			defer s.Close()
			kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
			testenv.NoError(t, os.WriteFile(kubeconfig, []byte(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: `+s.URL+`}}]
contexts: [{name: c, context: {cluster: c}}]
current-context: c
`), 0o600))
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			testenv.NoError(t, waitAPI(ctx, kubeconfig, func(context.Context) { another.Store(true) }))
		})
	}
}
