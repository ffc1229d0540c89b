// SPDX-License-Identifier: Apache-2.0

package gossipmember

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestGossipRotationAwaitsAllMembers: a step begins when all that live have done the one before; an interrupted
// rotation is ended and a whole one follows.
func TestGossipRotationAwaitsAllMembers(t *testing.T) {
	for name, interrupted := range map[string]bool{"new": false, "after an interrupted one": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := clusterconfig.NewGossipKeys()
				if interrupted {
					start = start.WithNew().UsingLast()
				}
				secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: GossipSecret}}
				testenv.NoError(t, putKeys(secret, start))
				client := fake.NewClientset(secret, nodeNamed("a"), nodeNamed("b"))
				members, stop := followKeys(t, name, client, start)
				var reported []string
				r := Rotation{Client: client, Progress: func(s string) { reported = append(reported, s) },
					Members: func(ctx context.Context) ([]status.Member, error) {
						two, err := members(ctx)
						return append(two, status.Member{Name: "off", State: "silent", KeyGeneration: 1}), err
					}}
				testenv.Check(t, r.Run(t.Context()))
				stop()
				end := testenv.Must(r.read(t.Context()))(t)
				if len(end.Keys) != 1 || contains(start, end.Keys[0]) {
					t.Errorf("at the end there are %d keys, of the generation %d", len(end.Keys), end.Generation)
				}
				if text := strings.Join(reported, "\n"); !strings.Contains(text, "waiting for") ||
					strings.Contains(text, "interrupted") != interrupted {
					t.Errorf("it logged:\n%s", text)
				}
			})
		})
	}
}

// followKeys has two members, one of them late, take the keys over until stop is called, and understand one another all
// the while.
func followKeys(t *testing.T, what string, client kubernetes.Interface, start clusterconfig.GossipKeys) (
	members func(context.Context) ([]status.Member, error), stop func()) {
	var mu sync.Mutex
	have := []clusterconfig.GossipKeys{start, start}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ctx.Err() == nil; i++ {
			time.Sleep(time.Second) // the bubble's time: how often a member looks
			keys, err := Rotation{Client: client}.read(t.Context())
			testenv.Check(t, err)
			mu.Lock()
			have[0] = keys
			if i%5 == 0 {
				have[1] = keys
			}
			if !contains(have[0], have[1].Keys[0]) || !contains(have[1], have[0].Keys[0]) {
				t.Errorf("%s: two members do not understand one another: generations %d and %d", what, have[0].Generation, have[1].Generation)
			}
			mu.Unlock()
		}
	}()
	return func(context.Context) ([]status.Member, error) {
		mu.Lock()
		defer mu.Unlock()
		return []status.Member{
			{Name: "a", State: "alive", KeyGeneration: have[0].Generation}, {Name: "b", State: "alive", KeyGeneration: have[1].Generation},
		}, nil
	}, func() { cancel(); <-done }
}

func nodeNamed(name string) *corev1.Node {
	return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

// TestGossipRotationOfLateMembers: a member without a Node holds nothing up; one with a Node is named when it has not
// taken the key in time, and nothing is taken away from it.
func TestGossipRotationOfLateMembers(t *testing.T) {
	for name, tt := range map[string]struct {
		nodes []runtime.Object
		want  string
	}{
		"a machine whose Node was deleted": {[]runtime.Object{nodeNamed("a")}, ""},
		"a node that cannot ask": {[]runtime.Object{nodeNamed("a"), nodeNamed("late")},
			"did not fetch the gossip key within 3m0s: late."},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				first := clusterconfig.NewGossipKeys()
				secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: GossipSecret}}
				testenv.NoError(t, putKeys(secret, first))
				r := Rotation{Client: fake.NewClientset(append(tt.nodes, secret)...), Progress: func(string) {}}
				r.Members = func(ctx context.Context) ([]status.Member, error) {
					keys, err := r.read(ctx)
					return []status.Member{{Name: "a", State: "alive", KeyGeneration: keys.Generation},
						{Name: "late", State: "alive", KeyGeneration: 1}}, err
				}
				began := time.Now()
				err := r.Run(t.Context())
				if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
					t.Errorf("%v, want %q", err, tt.want)
				}
				if took := time.Since(began); took > 4*time.Minute {
					t.Errorf("it took %s", took)
				}
				keys := testenv.Must(r.read(t.Context()))(t)
				testenv.False(t, tt.want != "" && !bytes.Equal(keys.Keys[0], first.Keys[0]), "the late member's key is not used any more")
				testenv.False(t, tt.want == "" && contains(keys, first.Keys[0]), "the old key is still understood")
			})
		})
	}
}

// TestTwoGossipRotations: however two that run at once interleave, one ends with an error or both have rotated, and no
// key vanishes that a member sends with.
func TestTwoGossipRotations(t *testing.T) {
	for delay := range 12 {
		synctest.Test(t, func(t *testing.T) {
			first := clusterconfig.NewGossipKeys()
			secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: GossipSecret}}
			testenv.NoError(t, putKeys(secret, first))
			client := fake.NewClientset(secret, nodeNamed("a"))
			refuseStaleSecrets(client)
			r := Rotation{Client: client, Progress: func(string) {}}
			have, took := first, time.Now()
			var mu sync.Mutex
			r.Members = func(ctx context.Context) ([]status.Member, error) {
				mu.Lock()
				defer mu.Unlock()
				if time.Since(took) > time.Second { // how often the member looks
					now, err := r.read(ctx)
					if err != nil {
						return nil, err
					}
					if !contains(now, have.Keys[0]) {
						t.Errorf("after %d ms: the key of the generation %d is used, and that of %d does not have it", delay*100,
							have.Generation, now.Generation)
					}
					have, took = now, time.Now()
				}
				return []status.Member{{Name: "a", State: "alive", KeyGeneration: have.Generation}}, nil
			}
			errs := make(chan error, 2) // two: both rotations
			go func() { errs <- r.Run(t.Context()) }()
			go func() {
				time.Sleep(time.Duration(delay) * 100 * time.Millisecond) // the bubble's time: the second one comes that much later
				errs <- r.Run(t.Context())
			}()
			failed := 0
			for range 2 {
				if err := <-errs; err != nil {
					failed++
					testenv.True(t, strings.Contains(err.Error(), "another command changed the gossip keys"), "%v", err)
				}
			}
			end := testenv.Must(r.read(t.Context()))(t)
			if failed > 1 || len(end.Keys) != 1 || contains(first, end.Keys[0]) {
				t.Errorf("after %d ms: %d failed, and there are %d keys", delay*100, failed, len(end.Keys))
			}
		})
	}
}

// refuseStaleSecrets has a fake API refuse an update of a Secret that was read before another one changed it, as the
// true API does. The fake itself stores whatever comes last.
func refuseStaleSecrets(client *fake.Clientset) {
	var mu sync.Mutex
	version := 1
	client.PrependReactor("get", "secrets", func(a clienttesting.Action) (bool, runtime.Object, error) {
		mu.Lock()
		defer mu.Unlock()
		done, o, err := clienttesting.ObjectReaction(client.Tracker())(a)
		if s, ok := o.(*corev1.Secret); ok && err == nil {
			s.ResourceVersion = strconv.Itoa(version)
		}
		return done, o, err
	})
	client.PrependReactor("update", "secrets", func(a clienttesting.Action) (bool, runtime.Object, error) {
		mu.Lock()
		defer mu.Unlock()
		s := a.(clienttesting.UpdateAction).GetObject().(*corev1.Secret)
		if s.ResourceVersion != strconv.Itoa(version) {
			return true, nil, apierrors.NewConflict(corev1.Resource("secrets"), s.Name, errors.New("it was changed meanwhile"))
		}
		version++
		return clienttesting.ObjectReaction(client.Tracker())(a)
	})
}

func contains(k clusterconfig.GossipKeys, key []byte) bool {
	return slices.ContainsFunc(k.Keys, func(have []byte) bool { return bytes.Equal(have, key) })
}

// TestGossipRotationLeaderDies: the store's leader dies at each request of a rotation in turn, before it has done what
// it was asked for or after it. The rotation ends all the same, or it is run again; the members understand one another
// all along.
func TestGossipRotationLeaderDies(t *testing.T) {
	for _, after := range []bool{false, true} {
		for n, died := 1, true; died; n++ {
			synctest.Test(t, func(t *testing.T) { died = gossipRotationAtWhichTheLeaderDies(t, n, after) })
			testenv.False(t, !died && n < 5, "a rotation had %d requests only", n-1)
		}
	}
}

// gossipRotationAtWhichTheLeaderDies has the leader die at a request, and says whether there were so many.
func gossipRotationAtWhichTheLeaderDies(t *testing.T, n int, after bool) (died bool) {
	first := clusterconfig.NewGossipKeys()
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: GossipSecret}}
	testenv.NoError(t, putKeys(secret, first))
	whole := fake.NewClientset(secret, nodeNamed("a"), nodeNamed("b"))
	mortal, requests := &fake.Clientset{}, 0
	mortal.AddReactor("*", "*", func(a clienttesting.Action) (bool, runtime.Object, error) {
		do := clienttesting.ObjectReaction(whole.Tracker())
		if requests++; requests != n {
			return do(a)
		}
		if after {
			_, _, _ = do(a) // its answer is lost
		}
		return true, nil, errors.New("etcdserver: leader changed")
	})
	members, stop := followKeys(t, fmt.Sprintf("request %d, after it: %t", n, after), whole, first)
	r := Rotation{Client: mortal, Progress: func(string) {}, Members: members}
	err := r.Run(t.Context())
	died = requests >= n
	if err != nil {
		r.Client = whole
		err = r.Run(t.Context())
	}
	testenv.Check(t, err, "request %d, after it: %t: run again, it says", n, after)
	stop()
	end, err := Rotation{Client: whole}.read(t.Context())
	if err != nil || len(end.Keys) != 1 || contains(first, end.Keys[0]) {
		t.Errorf("request %d, after it: %t: at the end there are %d keys, of the generation %d: %v", n, after, len(end.Keys), end.Generation, err)
	}
	return died
}
