// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/metadata"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/ingress/compile"
	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// metadataAPI is a metadata.Interface of the objects of a fake client: lists and watches of all namespaces, with the
// field type of Secrets.
type metadataAPI struct {
	client  *fake.Clientset
	expires atomic.Bool // a watch ends with code 410 at the next change, until the next list
	lists   atomic.Int32
}

type metadataOf struct {
	metadata.Getter // nil: only List and Watch are called
	api             *metadataAPI
	resource        schema.GroupVersionResource
}

// Resource implements metadata.Interface.
func (a *metadataAPI) Resource(r schema.GroupVersionResource) metadata.Getter {
	return metadataOf{api: a, resource: r}
}

// IsWatchListSemanticsUnSupported makes reflectors list, and then watch.
func (a *metadataAPI) IsWatchListSemanticsUnSupported() bool { return true }

// List implements metadata.ResourceInterface.
func (m metadataOf) List(_ context.Context, o metav1.ListOptions) (*metav1.PartialObjectMetadataList, error) {
	kind := corev1.SchemeGroupVersion.WithKind(map[string]string{"secrets": "Secret", "configmaps": "ConfigMap"}[m.resource.Resource])
	list, err := m.api.client.Tracker().List(m.resource, kind, "")
	if err != nil {
		return nil, err
	}
	m.api.lists.Add(1)
	m.api.expires.Store(false)
	out := &metav1.PartialObjectMetadataList{}
	return out, meta.EachListItem(list, func(one runtime.Object) error {
		if selected(one, o.FieldSelector) {
			out.Items = append(out.Items, *partial(one))
		}
		return nil
	})
}

// Watch implements metadata.ResourceInterface.
func (m metadataOf) Watch(_ context.Context, o metav1.ListOptions) (watch.Interface, error) {
	w, err := m.api.client.Tracker().Watch(m.resource, "")
	if err != nil {
		return nil, err
	}
	return watch.Filter(w, func(e watch.Event) (watch.Event, bool) {
		if m.api.expires.Load() {
			gone := apierrors.NewResourceExpired("the history begins later").Status()
			return watch.Event{Type: watch.Error, Object: &gone}, true
		}
		return watch.Event{Type: e.Type, Object: partial(e.Object)}, selected(e.Object, o.FieldSelector)
	}), nil
}

func selected(o runtime.Object, selector string) bool {
	has := fields.Set{}
	if s, ok := o.(*corev1.Secret); ok {
		has["type"] = string(s.Type)
	}
	return fields.ParseSelectorOrDie(selector).Matches(has)
}

// partial returns the metadata of an object. The fake client gives no versions, so the version follows from the object.
func partial(o runtime.Object) *metav1.PartialObjectMetadata {
	a, _ := meta.Accessor(o)   // these objects have metadata
	text, _ := json.Marshal(o) // and can be written
	sum := fnv.New64a()
	_, _ = sum.Write(text) // returns no error
	return &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
		Namespace: a.GetNamespace(), Name: a.GetName(), ResourceVersion: fmt.Sprint(sum.Sum64()), Labels: map[string]string{"dropped": "yes"},
	}}
}

// compiled runs objects in fake time, and counts what they do. reads counts Secrets and ConfigMaps that are read by
// their names. The test reads the fields after synctest.Wait.
type compiled struct {
	*testing.T
	client   *fake.Clientset
	metadata *metadataAPI
	objects  *objects
	puts     int
	reads    []string
	fails    bool // reads fail
	now      table.Sections
}

func runObjects(t *testing.T, test func(c *compiled)) {
	synctest.Test(t, func(t *testing.T) {
		c := &compiled{T: t, client: fake.NewClientset()}
		c.metadata = &metadataAPI{client: c.client}
		for _, resource := range []string{"secrets", "configmaps"} {
			c.client.PrependReactor("get", resource, func(a clienttesting.Action) (bool, runtime.Object, error) {
				get := a.(clienttesting.GetAction)
				c.reads = append(c.reads, get.GetNamespace()+"/"+get.GetName())
				if c.fails {
					return true, nil, errors.New("no majority")
				}
				return false, nil, nil
			})
		}
		// The informer of certificates: the fake client knows no field selectors.
		c.client.PrependReactor("list", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) { return true, &corev1.SecretList{}, nil })
		c.client.PrependWatchReactor("secrets", func(clienttesting.Action) (bool, watch.Interface, error) { return true, watch.NewFake(), nil })
		c.objects = newObjects(Options{Client: c.client, Metadata: c.metadata, Logger: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() {
			c.objects.run(ctx, func(s table.Sections) {
				c.puts++
				c.now = s
			})
		})
		synctest.Wait()
		test(c)
		cancel()
		running.Wait()
	})
}

// after waits in fake time, and then for what follows.
func after(d time.Duration) {
	time.Sleep(d) // fake time
	synctest.Wait()
}

// ingress makes an Ingress with users, and with certificates of these names.
func (c *compiled) ingress(namespace, host string, certificates ...string) {
	c.Helper()
	ing := &networkingv1.Ingress{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: host, Annotations: map[string]string{
			"nginx.ingress.kubernetes.io/auth-type": "basic", "nginx.ingress.kubernetes.io/auth-secret": "users",
		}},
		Spec: networkingv1.IngressSpec{IngressClassName: ptr.To(compile.Class), Rules: []networkingv1.IngressRule{{Host: host}}},
	}
	for _, name := range certificates {
		ing.Spec.TLS = append(ing.Spec.TLS, networkingv1.IngressTLS{SecretName: name})
	}
	testenv.Must(c.client.NetworkingV1().Ingresses(namespace).Create(c.Context(), ing, metav1.CreateOptions{}))(c)
}

const (
	firstUser  = "a:{SHA}Et6pb+wgWTVmq3VpLJlJWWgzrck="
	secondUser = "a:{SHA}2PRZAyDhNDqRW2OUFwZQqPNdaSY="
)

// secret makes or changes a Secret of the type Opaque with a user.
func (c *compiled) secret(namespace, name, user string) {
	c.Helper()
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Type: corev1.SecretTypeOpaque, Data: map[string][]byte{"auth": []byte(user)}}
	_, err := c.client.CoreV1().Secrets(namespace).Update(c.Context(), s, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		_, err = c.client.CoreV1().Secrets(namespace).Create(c.Context(), s, metav1.CreateOptions{})
	}
	testenv.NoError(c, err)
}

// users returns the section of the users of shop/users.
func (c *compiled) users() string { return string(c.now[table.UsersKey("shop", "users", "auth-file")]) }

func (c *compiled) wantUser(user, when string) {
	c.Helper()
	want := ""
	if user != "" {
		text := testenv.Must(json.Marshal(table.Users{Hashes: map[string]string{"a": user[2:]}}))(c)
		want = string(text)
	}
	testenv.Equal(c, c.users(), want, "the users %s:", when)
}

// TestNamedSecretIsFollowed: a Secret that an Ingress names is served within a second after each change, and read once.
func TestNamedSecretIsFollowed(t *testing.T) {
	runObjects(t, func(c *compiled) {
		c.ingress("shop", "h")
		after(time.Second)
		testenv.Equal(t, len(c.reads), 0, "reads of a missing Secret:")
		for _, user := range []string{firstUser, secondUser} {
			c.secret("shop", "users", user)
			after(time.Second)
			c.wantUser(user, "after a change")
		}
		puts := c.puts
		c.secret("shop", "other", firstUser)
		c.secret("bank", "users", firstUser)
		after(time.Hour)
		testenv.EqualSlices(t, c.reads, []string{"shop/users", "shop/users"}, "reads")
		testenv.Equal(t, c.puts-puts, 0, "tables after changes that no route names:")
		testenv.NoError(t, c.client.CoreV1().Secrets("shop").Delete(t.Context(), "users", metav1.DeleteOptions{}))
		after(time.Second)
		c.wantUser("", "after the deletion")
	})
}

// TestMissingSecretsCostNothing: five Ingresses with 20,000 names of Secrets that do not exist cause no read, and no
// table without a change. One that appears is served within a second, and another namespace's as well.
func TestMissingSecretsCostNothing(t *testing.T) {
	runObjects(t, func(c *compiled) {
		var names []string
		for i := range 5 { // one Ingress may have no more
			names = nil
			for k := range 4000 {
				names = append(names, fmt.Sprintf("s%d-%d", i, k))
			}
			c.ingress("bad", fmt.Sprintf("bad%d", i), names...)
		}
		after(time.Second)
		puts := c.puts
		after(time.Hour)
		testenv.Equal(t, len(c.reads), 0, "reads")
		testenv.Equal(t, c.puts-puts, 0, "tables in an hour without a change:")
		c.secret("shop", "users", firstUser)
		c.ingress("shop", "h")
		after(time.Second)
		c.wantUser(firstUser, "of another namespace")
		s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "bad", Name: names[len(names)-1]}, Type: corev1.SecretTypeOpaque, Data: pair(t)}
		testenv.Must(c.client.CoreV1().Secrets("bad").Create(t.Context(), s, metav1.CreateOptions{}))(t)
		after(time.Second)
		testenv.True(t, c.now[table.CertificateKey("bad", s.Name)] != nil, "the certificate is not served")
		testenv.Equal(t, len(c.reads), 2, "reads")
	})
}

// TestMissedChangesAreFound: what has changed while there was no watch is found by the list after it. What has not
// changed is not read again.
func TestMissedChangesAreFound(t *testing.T) {
	for name, change := range map[string]func(c *compiled) (user string){
		"changed": func(c *compiled) string { c.secret("shop", "users", secondUser); return secondUser },
		"deleted": func(c *compiled) string {
			testenv.NoError(c, c.client.CoreV1().Secrets("shop").Delete(c.Context(), "users", metav1.DeleteOptions{}))
			return ""
		},
	} {
		t.Run(name, func(t *testing.T) {
			runObjects(t, func(c *compiled) {
				c.secret("shop", "users", firstUser)
				c.secret("shop", "same", firstUser)
				c.ingress("shop", "h", "same")
				after(time.Second)
				c.wantUser(firstUser, "before")
				lists, reads := c.metadata.lists.Load(), len(c.reads)
				c.metadata.expires.Store(true)
				want := change(c)
				after(time.Minute) // the pause after an error
				testenv.True(t, c.metadata.lists.Load() > lists, "there was no list")
				c.wantUser(want, "that the watch missed")
				testenv.False(t, slices.Contains(c.reads[reads:], "shop/same"), "a Secret that is the same was read again")
			})
		})
	}
}

// TestFailedReadIsRepeated: while reads fail the last users stay, and a second after that the new ones are served.
func TestFailedReadIsRepeated(t *testing.T) {
	runObjects(t, func(c *compiled) {
		c.secret("shop", "users", firstUser)
		c.ingress("shop", "h")
		after(time.Second)
		c.fails = true
		c.secret("shop", "users", secondUser)
		after(time.Minute)
		c.wantUser(firstUser, "while reads fail")
		c.fails = false
		after(readsPause)
		c.wantUser(secondUser, "afterwards")
	})
}

// TestReadsAreBounded: of a namespace that names two thousand Secrets few are read at a time, and another's Secret is
// among the first.
func TestReadsAreBounded(t *testing.T) {
	of := map[types.NamespacedName]string{}
	for i := range 2000 {
		of[types.NamespacedName{Namespace: "bad", Name: fmt.Sprintf("s%d", i)}] = "1"
	}
	good := types.NamespacedName{Namespace: "good", Name: "z"}
	of[good] = "1"
	v := &versions{listed: make(chan struct{}), byName: of}
	v.runOnce.Do(func() { close(v.listed) })
	gets := 0
	r := newReads(v, func(context.Context, types.NamespacedName) (*corev1.Secret, error) {
		gets++
		return &corev1.Secret{}, nil
	})
	var names []types.NamespacedName
	for name := range of {
		names = append(names, name)
	}
	changed, again := r.sync(t.Context(), names)
	if gets != maxReads || !changed || again != readsPause || r.object(good) == nil {
		t.Fatalf("%d were read, changed: %t, again after %s; the other namespace's is %v", gets, changed, again, r.object(good))
	}
	rounds := 1
	for ; again > 0 && rounds < len(names); rounds++ {
		_, again = r.sync(t.Context(), names)
	}
	testenv.Equal(t, gets, len(names), "reads after all rounds:")
	testenv.Equal(t, rounds, (len(names)+maxReads-1)/maxReads, "rounds")
	if changed, again := r.sync(t.Context(), names); changed || again > 0 || gets != len(names) {
		t.Errorf("without a change: changed %t, again after %s, %d reads", changed, again, gets)
	}
	_, _ = r.sync(t.Context(), nil)
	testenv.True(t, r.object(good) == nil, "what no object names any more is remembered")
}

// TestVersionsKeepNoMetadata: while a list arrives, an object takes no more memory than its name and version.
func TestVersionsKeepNoMetadata(t *testing.T) {
	v := newVersions(&metadataAPI{client: fake.NewClientset()}, "secrets", fields.Everything(), func() {})
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "a"}}
	kept := testenv.Must(v.Transformer()(partial(s)))(t).(*metav1.PartialObjectMetadata)
	want := metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "a", ResourceVersion: partial(s).ResourceVersion}}
	testenv.Equal(t, fmt.Sprint(*kept), fmt.Sprint(want), "kept")
}
