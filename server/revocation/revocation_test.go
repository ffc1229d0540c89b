// SPDX-License-Identifier: Apache-2.0

package revocation

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/utils/clock"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/nodecreds"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/server/gossipmember"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/server/roster"
	"github.com/coracle-k8s/coracle/server/secrets"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// fixture is a server that follows its store, and an API with two nodes and a server's own.
type fixture struct {
	*testing.T
	store  *raftstore.Store
	dir    string
	guard  nodecreds.Guard
	tokens *secrets.Tokens
	api    *fake.Clientset
	said   []string
	order  Revocation
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{T: t, dir: t.TempDir()}
	quiet := slog.New(slog.DiscardHandler)
	folders := secrets.Folders{Server: f.dir, TLS: filepath.Join(f.dir, "tls"), Cred: filepath.Join(f.dir, "cred")}
	p := testenv.Must(pki.Open(pki.Options{Dir: folders.TLS, Logger: quiet}))(t)
	f.tokens = testenv.Must(secrets.NewTokens(secrets.TokenOptions{
		Folders: folders, ServerID: "s1", Root: p.Root(), Guard: &f.guard, Clock: clock.RealClock{}, Logger: quiet,
	}))(t)
	f.store = testenv.Must(raftstore.Open(t.Context(), raftstore.Options{Dir: t.TempDir(), NodeID: "s1", Logger: quiet}))(t)
	t.Cleanup(func() { testenv.Check(t, f.store.Close(context.Background())) })
	testenv.NoError(t, f.store.WaitReady(t.Context()))
	testenv.NoError(t, f.tokens.Open(f.store.Client().KV))
	testenv.Run(t, func(ctx context.Context) error {
		f.tokens.Run(ctx, f.store.Client().Watcher)
		return nil
	})
	keys := testenv.Must(json.Marshal(clusterconfig.NewGossipKeys()))(t)
	system := func(name string, data map[string][]byte) *corev1.Secret {
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: name}, Data: data}
	}
	server := node("s1")
	server.Labels = map[string]string{roster.RoleLabel: roster.RoleValue}
	f.api = fake.NewClientset(server, node("n1"), node("n2"), pod("a", "n1"), pod("b", "n1"), pod("c", "n2"),
		system("n1"+roster.RegistrationSuffix, nil), system("n2"+roster.RegistrationSuffix, nil),
		system(gossipmember.GossipSecret, map[string][]byte{"keys.json": keys}))
	f.order = Revocation{
		Node: "n1", KV: f.store.Client().KV, ServerDir: f.dir, Servers: []string{"s1"}, Timeout: time.Minute, Client: f.api, Members: f.members,
		Progress: func(text string) { f.said = append(f.said, text) }, Now: time.Now,
	}
	return f
}

func node(name string) *corev1.Node { return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}} }

func pod(name, on string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: corev1.PodSpec{NodeName: on,
		Volumes: []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "of-" + name}}}}}}
}

func (f *fixture) keys() (keys clusterconfig.GossipKeys) {
	f.Helper()
	s := testenv.Must(f.api.CoreV1().Secrets(metav1.NamespaceSystem).Get(f.Context(), gossipmember.GossipSecret, metav1.GetOptions{}))(f)
	testenv.NoError(f, json.Unmarshal(s.Data["keys.json"], &keys))
	return keys
}

// members are alive, and have the keys of now; the stolen machine, which is alive as well, gets no other ones.
func (f *fixture) members(context.Context) ([]status.Member, error) {
	return []status.Member{{Name: "s1", State: "alive", KeyGeneration: f.keys().Generation}, {Name: f.order.Node, State: "alive"}}, nil
}

// want checks what is left of the nodes, their pods and their records.
func (f *fixture) want(nodes, pods, records string) {
	f.Helper()
	var n, p, r []string
	for _, i := range testenv.Must(f.api.CoreV1().Nodes().List(f.Context(), metav1.ListOptions{}))(f).Items {
		n = append(n, i.Name)
	}
	for _, i := range testenv.Must(f.api.CoreV1().Pods("").List(f.Context(), metav1.ListOptions{}))(f).Items {
		p = append(p, i.Name)
	}
	for _, i := range testenv.Must(f.api.CoreV1().Secrets(metav1.NamespaceSystem).List(f.Context(), metav1.ListOptions{}))(f).Items {
		if name, ok := strings.CutSuffix(i.Name, roster.RegistrationSuffix); ok {
			r = append(r, name)
		}
	}
	for what, got := range map[string][]string{nodes: n, pods: p, records: r} {
		slices.Sort(got)
		testenv.Equal(f, strings.Join(got, " "), what, "there are")
	}
}

func (f *fixture) revoked() nodecreds.Revoked { return f.guard.Revoked() }

// TestRevocationReplacesWhatTheNodeKnows: the node, its pods and its record go, those of others stay; the agent token,
// tokens that expire and the gossip key are others; the Secrets of its pods are named. Given again, it asks the servers
// again and replaces nothing.
func TestRevocationReplacesWhatTheNodeKnows(t *testing.T) {
	f := newFixture(t)
	made := testenv.Must(token.Create(t.Context(), f.api, token.CreateOptions{TTL: time.Hour, Now: time.Now()}))(t)
	agent, server, keys := f.tokens.Now().Agent, f.tokens.Now().Server, f.keys()
	testenv.NoError(t, f.order.Run(t.Context()))
	f.want("n2 s1", "c", "n2")
	testenv.True(t, f.revoked()["n1"] == 1 && len(f.revoked()) == 1, "revoked are %v", f.revoked())
	now, said := f.tokens.Now(), strings.Join(f.said, "\n")
	testenv.False(t, now.Agent == agent || now.Server != server || len(now.Former) > 0, "tokens: %+v", now)
	testenv.Equal(t, len(testenv.Must(token.List(t.Context(), f.api))(t)), 0, "tokens that expire:")
	if next := f.keys(); len(next.Keys) != 1 || bytes.Equal(next.Keys[0], keys.Keys[0]) {
		t.Error("the gossip key is the former one")
	}
	for _, words := range []string{made.ID, "default/of-a, default/of-b", "2 pods"} {
		testenv.Contains(t, said, words, "the progress")
	}

	agent, keys = f.tokens.Now().Agent, f.keys()
	testenv.NoError(t, f.order.Run(t.Context()), "given again")
	f.order.Servers = []string{"s1", "off"}
	f.order.Timeout = 0
	testenv.WantError(t, f.order.Run(t.Context()), "off", "n1")
	testenv.False(t, f.tokens.Now().Agent != agent || f.keys().Generation != keys.Generation || f.revoked()["n1"] != 1,
		"given again, it has begun again")

	f.order.Servers, f.order.Timeout = []string{"s1"}, time.Minute
	testenv.Must(f.api.CoreV1().Nodes().Create(t.Context(), node("n1"), metav1.CreateOptions{}))(t)
	testenv.NoError(t, f.order.Run(t.Context()), "the next machine of that name")
	testenv.True(t, f.revoked()["n1"] == 2 && f.tokens.Now().Agent != agent, "the next machine is not revoked: %v", f.revoked())
	f.want("n2 s1", "c", "n2")
}

// TestWhatCannotBeRevoked: a server's node and an unknown name are refused, and nothing changes; a name whose
// Node was deleted can be revoked.
func TestWhatCannotBeRevoked(t *testing.T) {
	f := newFixture(t)
	agent := f.tokens.Now().Agent
	f.order.Node = "s1"
	testenv.WantError(t, f.order.Run(t.Context()), "server", "Nothing was changed")
	f.order.Node = "typo"
	testenv.WantError(t, f.order.Run(t.Context()), "no node", "--deleted")
	f.order.Deleted = true
	for _, f.order.Node = range []string{"N1", "n1.", "n1 ", "", "n1\nn2"} {
		testenv.WantError(t, f.order.Run(t.Context()), "cannot be a node's name")
	}
	f.order.Node = "typo"
	f.want("n1 n2 s1", "a b c", "n1 n2")
	testenv.True(t, f.tokens.Now().Agent == agent && len(f.revoked()) == 0, "it was changed: %v", f.revoked())
	testenv.NoError(t, f.order.Run(t.Context()))
	testenv.True(t, f.revoked()["typo"] == 1, "revoked are %v", f.revoked())
}

// TestInterruptedRevocationContinues: the API fails at each of the command's calls in turn. Given again, the command
// completes what it has begun. It replaces the agent token once more if the node is there still.
func TestInterruptedRevocationContinues(t *testing.T) {
	for n := 1; ; n++ {
		f := newFixture(t)
		testenv.Must(token.Create(t.Context(), f.api, token.CreateOptions{TTL: time.Hour, Now: time.Now()}))(t)
		calls, fails := 0, true
		f.api.PrependReactor("*", "*", func(clienttesting.Action) (bool, runtime.Object, error) {
			if calls++; calls == n && fails {
				return true, nil, errors.New("the API is down")
			}
			return false, nil, nil
		})
		f.order.Members = func(ctx context.Context) ([]status.Member, error) {
			defer func(was bool) { fails = was }(fails)
			fails = false // the members' own calls are no part of the command
			before := calls
			defer func() { calls = before }()
			return f.members(ctx)
		}
		err := f.order.Run(t.Context())
		whole := calls < n
		testenv.True(t, (err == nil) == whole, "at call %d: %v", n, err)
		fails = false
		agent, times := f.tokens.Now().Agent, f.revoked()["n1"]
		_, noNode := f.api.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{})
		_, noRecord := f.api.CoreV1().Secrets(metav1.NamespaceSystem).Get(t.Context(), "n1"+roster.RegistrationSuffix, metav1.GetOptions{})
		if noNode == nil || noRecord == nil {
			times++
		}
		testenv.NoError(t, f.order.Run(t.Context()), "at call %d, given again", n)
		f.want("n2 s1", "c", "n2")
		begun := f.tokens.Now().Agent != agent
		testenv.True(t, f.revoked()["n1"] == times && begun == (noNode == nil || noRecord == nil), "at call %d: begun again: %v", n, f.revoked())
		testenv.Equal(t, len(f.keys().Keys), 1, "at call %d: gossip keys:", n)
		if whole {
			testenv.True(t, n > 8, "the command has %d calls only", n-1)
			return
		}
	}
}

// TestNodeOfAnUnfinishedRevocationIsRevokedAgain: a revocation has not ended, a new machine has joined under the name
// since, and is stolen, too.
func TestNodeOfAnUnfinishedRevocationIsRevokedAgain(t *testing.T) {
	for what, joins := range map[string]func(f *fixture) error{
		"its Node is there": func(f *fixture) error {
			return testenv.Err(f.api.CoreV1().Nodes().Create(f.Context(), node("n1"), metav1.CreateOptions{}))
		},
		"it has just joined": func(f *fixture) error {
			record := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: "n1" + roster.RegistrationSuffix}}
			return testenv.Err(f.api.CoreV1().Secrets(metav1.NamespaceSystem).Create(f.Context(), record, metav1.CreateOptions{}))
		},
	} {
		t.Run(what, func(t *testing.T) {
			f := newFixture(t)
			f.order.Members = func(context.Context) ([]status.Member, error) { return nil, errors.New("the server stops") }
			testenv.WantError(t, f.order.Run(t.Context()), "knows the gossip key still", "the server stops")
			f.want("n2 s1", "c", "n2")
			agent := f.tokens.Now().Agent
			testenv.NoError(t, joins(f))
			f.order.Members = f.members
			testenv.NoError(t, f.order.Run(t.Context()))
			testenv.False(t, f.revoked()["n1"] != 2 || f.tokens.Now().Agent == agent, "its certificates are accepted still: %v", f.revoked())
			f.want("n2 s1", "c", "n2")
		})
	}
}

// TestServerWithoutANodeIsNotRevoked: its Node was deleted, or it never had one. Its certificates cannot be refused.
func TestServerWithoutANodeIsNotRevoked(t *testing.T) {
	f := newFixture(t)
	testenv.Must(f.store.Client().Put(t.Context(), "/coracle/servers/names/s1", "boat"))(t)
	testenv.Must(f.store.Client().Put(t.Context(), "/coracle/servers/names/removed", "n1"))(t) // its machine is a node by now
	f.order.Node = "boat"
	for _, f.order.Deleted = range []bool{false, true} {
		testenv.WantError(t, f.order.Run(t.Context()), "server", "Nothing was changed")
	}
	testenv.Equal(t, len(f.revoked()), 0, "revoked are:")
	f.order.Node = "n1"
	testenv.NoError(t, f.order.Run(t.Context()))
}
