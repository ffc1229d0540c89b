// SPDX-License-Identifier: Apache-2.0

package storeusage_test

import (
	"fmt"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
	"github.com/coracle-k8s/coracle/server/storeusage"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// viewOf is a view of keys with values of these sizes. The keys are written twice, so that there is history.
func viewOf(sizes map[string]int) *mvcc.View {
	state := mvcc.New()
	for range 2 {
		for key, size := range sizes {
			state.Apply(&pb.PutRequest{Key: []byte(key), Value: make([]byte, size)})
		}
	}
	return state.Freeze()
}

// TestUsageByKindAndNamespace: the kinds have the API's words, and all bytes are counted.
func TestUsageByKindAndNamespace(t *testing.T) {
	view := viewOf(map[string]int{
		"/registry/configmaps/shop/a":                                      5000,
		"/registry/configmaps/shop/b":                                      6000,
		"/registry/configmaps/kube-system/c":                               1000,
		"/registry/minions/node-1":                                         900,
		"/registry/services/specs/shop/web":                                800,
		"/registry/services/endpoints/shop/web":                            700,
		"/registry/example.com/widgets/shop/w":                             600,
		"/registry/example.com/clusterwidgets/w":                           500,
		"/registry/apiregistration.k8s.io/apiservices/v1.":                 400,
		"/registry/masterleases/10.0.0.1":                                  350,
		"/registry/clusterroles/system:controller:clusterrole-aggregation": 200,
		"/coracle/tokens/cluster":                                          100,
		"compact_rev_key":                                                  1,
	})
	usage := storeusage.Of(view, 1<<20)
	var lines []string
	sum := int64(0)
	for _, k := range usage.Kinds {
		lines = append(lines, fmt.Sprintf("%s %s %d", k.Kind, k.Namespace, k.Keys))
		sum += k.Bytes
	}
	want := strings.Join([]string{
		"configmaps shop 2", "configmaps kube-system 1", "nodes  1", "services shop 1", "endpoints shop 1", "widgets.example.com shop 1",
		"clusterwidgets.example.com  1", "apiservices.apiregistration.k8s.io  1", "masterleases  1", "clusterroles  1", "coracle  1",
		"compact_rev_key  1",
	}, "\n")
	testenv.True(t, strings.Join(lines, "\n") == want, "got\n%s\nwant\n%s", strings.Join(lines, "\n"), want)
	if sum != usage.Live || usage.Live*2 != usage.Total || usage.Keys != 13 || usage.Quota != 1<<20 {
		t.Errorf("%+v, and the kinds have %d bytes", usage.StoreSize, sum)
	}
	if all := usage.ByKind(); all[0].Kind != "configmaps" || all[0].Keys != 3 || all[0].Bytes <= 12000 || all[0].Namespace != "" {
		t.Errorf("%+v", all)
	}
}

// TestQuotasAreJudged: from 80% of the quota there is a note with the largest kinds, and a server with too little
// memory is named.
func TestQuotasAreJudged(t *testing.T) {
	view := viewOf(map[string]int{
		"/registry/configmaps/a/a": 60_000, "/registry/events/a/a": 30_000, "/registry/pods/a/a": 5000, "/registry/secrets/a/a": 100,
	})
	live := view.Stats().LiveBytes
	most := "configmaps (1, 60.2 kB), events (1, 30.2 kB), pods (1, 5.2 kB)."
	for _, c := range []struct {
		what            string
		servers         []status.ClusterServer
		quota           int64
		problem, note   string
		problems, notes int
	}{
		{what: "room", quota: live*5/4 + 1},
		{what: "80%", quota: live * 5 / 4, notes: 1, note: most},
		{what: "no quota is known"},
		{
			what: "the leader's counts", quota: live * 2, notes: 1, note: "which the memory of b allows",
			servers: []status.ClusterServer{
				{Name: "a", Answers: true, Quota: live * 2, ClusterQuota: live, Role: status.Leader}, {Name: "b", Answers: true, Quota: live},
			},
		},
		{
			what: "one has too little", quota: live * 2, problems: 1, problem: "b: its memory is enough for a store of",
			servers: []status.ClusterServer{
				{Name: "a", Answers: true, Quota: live * 2, ClusterQuota: live * 2}, {Name: "b", Answers: true, Quota: live / 2},
			},
		},
		{
			what: "one has hardly enough", quota: live * 2, notes: 1, note: "b: its memory is enough for a store of",
			servers: []status.ClusterServer{
				{Name: "a", Answers: true, Quota: live * 2, ClusterQuota: live * 2}, {Name: "b", Answers: true, Quota: live * 9 / 8},
			},
		},
	} {
		got := &status.Servers{Servers: c.servers}
		storeusage.Judge(got, view, c.quota)
		if len(got.Problems) != c.problems || len(got.Notes) != c.notes || !strings.Contains(strings.Join(got.Problems, "\n"), c.problem) ||
			!strings.Contains(strings.Join(got.Notes, "\n"), c.note) {
			t.Errorf("%s: problems %q, notes %q", c.what, got.Problems, got.Notes)
		}
	}
	testenv.True(t, live > 95_000, "%d bytes", live)
}
