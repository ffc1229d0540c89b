// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/coracle-k8s/coracle/internal/cluster"
	"github.com/coracle-k8s/coracle/internal/status"
)

// TestGossipRotation: a step begins when all that live have done the one before; an interrupted rotation is ended and a
// whole one follows.
func TestGossipRotation(t *testing.T) {
	for name, interrupted := range map[string]bool{"new": false, "after an interrupted one": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				first, err := cluster.NewGossipKeys()
				if err != nil {
					t.Fatal(err)
				}
				start := first
				if interrupted {
					if start, err = first.WithNew(); err != nil {
						t.Fatal(err)
					}
					start = start.UsingLast()
				}
				secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: GossipSecret}}
				if err := PutKeys(secret, start); err != nil {
					t.Fatal(err)
				}
				client := fake.NewClientset(secret)
				read := func() cluster.GossipKeys {
					s, err := client.CoreV1().Secrets(metav1.NamespaceSystem).Get(t.Context(), GossipSecret, metav1.GetOptions{})
					if err != nil {
						t.Fatal(err)
					}
					keys, err := KeysIn(s)
					if err != nil {
						t.Fatal(err)
					}
					return keys
				}
				// Two members take the keys over, one of them late; a third is off.
				have := []cluster.GossipKeys{start, start}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() {
					defer close(done)
					for i := 0; ctx.Err() == nil; i++ {
						time.Sleep(time.Second) // the bubble's time: how often a member looks
						keys := read()
						have[0] = keys
						if i%5 == 0 {
							have[1] = keys
						}
						if !contains(have[0], have[1].Keys[0]) || !contains(have[1], have[0].Keys[0]) {
							t.Errorf("two members do not understand one another: generations %d and %d", have[0].Generation, have[1].Generation)
						}
					}
				}()
				var told []string
				r := GossipRotation{Client: client, Progress: func(s string) { told = append(told, s) }, Members: func(context.Context) ([]status.Member, error) {
					return []status.Member{
						{Name: "a", State: "alive", KeyGeneration: have[0].Generation}, {Name: "b", State: "alive", KeyGeneration: have[1].Generation},
						{Name: "off", State: "silent", KeyGeneration: 1},
					}, nil
				}}
				if err := r.Run(ctx); err != nil {
					t.Error(err)
				}
				cancel()
				<-done
				end := read()
				if len(end.Keys) != 1 || contains(start, end.Keys[0]) {
					t.Errorf("at the end there are %d keys, of the generation %d", len(end.Keys), end.Generation)
				}
				if text := strings.Join(told, "\n"); !strings.Contains(text, "waiting for") || strings.Contains(text, "interrupted") != interrupted {
					t.Errorf("it was told:\n%s", text)
				}
			})
		})
	}
}

func contains(k cluster.GossipKeys, key []byte) bool {
	for _, have := range k.Keys {
		if bytes.Equal(have, key) {
			return true
		}
	}
	return false
}
