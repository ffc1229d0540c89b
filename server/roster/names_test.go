// SPDX-License-Identifier: Apache-2.0

package roster

import (
	"context"
	"log/slog"
	"maps"
	"testing"

	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestServersNameIsStored: a server's name is in the store once it has published it, and those of servers that are gone
// are not.
func TestServersNameIsStored(t *testing.T) {
	store := testenv.Must(
		raftstore.Open(t.Context(), raftstore.Options{Dir: t.TempDir(), NodeID: "s1", Logger: slog.New(slog.DiscardHandler)}))(t)
	defer func() { testenv.Check(t, store.Close(context.Background())) }()
	testenv.NoError(t, store.WaitReady(t.Context()))
	kv := store.Client().KV
	members := []raftstore.Member{{Name: "s1"}, {Name: "s2"}}
	tell := func(id, name string) {
		t.Helper()
		testenv.NoError(t, writeName(t.Context(), kv, id, name, func() []raftstore.Member { return members }))
	}
	tell("s1", "north")
	tell("s2", "south")
	tell("s1", "arctic")
	if got, want := publishedNames(t.Context(), kv), map[string]string{"s1": "arctic",
		"s2": "south"}; !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	before := testenv.Must(kv.Get(t.Context(), namesPrefix+"s1"))(t)
	tell("s1", "arctic")
	testenv.Equal(t, testenv.Must(kv.Get(t.Context(), namesPrefix+"s1"))(t).Header.Revision, before.Header.Revision, "a name that is there was written again:")
	members = members[:1]
	tell("s1", "arctic")
	if got, want := publishedNames(t.Context(), kv), map[string]string{"s1": "arctic"}; !maps.Equal(got, want) {
		t.Errorf("after the second one was removed: %v, want %v", got, want)
	}
}

// TestNamesOfServers: a server that has no node and does not answer has the name that it published, unless another one
// has it now.
func TestNamesOfServers(t *testing.T) {
	states := []raftstore.MemberState{
		{Member: raftstore.Member{ID: 1, Name: "s1", Self: true}},
		{Member: raftstore.Member{ID: 2, Name: "s2"}, Hostname: "south", Answers: true},
		{Member: raftstore.Member{ID: 3, Name: "s3", Address: "10.0.0.3:6443"}},
		{Member: raftstore.Member{ID: 4, Name: "s4", Address: "10.0.0.2:6443"}},
		{Member: raftstore.Member{ID: 5, Name: "s5", Address: "10.0.0.5:6443"}},
	}
	names := map[string]string{"s1": "north"}
	published := map[string]string{"s1": "of before", "s2": "of before, too", "s3": "west", "s4": "south"}
	got := map[string]string{}
	for _, s := range listServers(states, names, published) {
		got[s.ServerID] = s.Name
	}
	if want := map[string]string{"s1": "north", "s2": "south", "s3": "west", "s4": "s4", "s5": "s5"}; !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
