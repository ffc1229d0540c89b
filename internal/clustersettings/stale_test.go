// SPDX-License-Identifier: Apache-2.0

package clustersettings

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"github.com/coracle-k8s/coracle/server/apiserver/memtransport"
)

// TestServerBehindAndCutOff: a server that is cut off from the others has a watch cache, and answers from it a list for which any state will do. That may be older than what a stream of another
// server has told, so it is not asked for.
func TestServerBehindAndCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		transport := memtransport.New(memtransport.Options{Logger: slog.New(slog.DiscardHandler)})
		behind := corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a", Namespace: metav1.NamespaceSystem, ResourceVersion: "7"}, Data: map[string]string{"v": "old"}}
		transport.SetHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			var answer any = corev1.ConfigMapList{
				TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMapList"}, ListMeta: metav1.ListMeta{ResourceVersion: "7"}, Items: []corev1.ConfigMap{behind},
			}
			if r.URL.Query().Get("watch") != "" || r.URL.Query().Get("resourceVersion") != "0" {
				w.WriteHeader(http.StatusGatewayTimeout)
				answer = apierrors.NewTimeoutError("no majority", 0).Status()
			}
			if err := json.NewEncoder(w).Encode(answer); err != nil {
				t.Error(err)
			}
		}))
		client, err := kubernetes.NewForConfig(&rest.Config{Host: "http://server", Transport: transport, QPS: -1})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(klog.NewContext(t.Context(), logr.Discard()))
		var running sync.WaitGroup
		running.Go(func() {
			Each{Client: client, None: true}.Follow(ctx, "a", func(d Data) { t.Errorf("it hears %v", d) })
		})
		time.Sleep(time.Minute) // fake time
		cancel()
		running.Wait()
		if err := transport.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
