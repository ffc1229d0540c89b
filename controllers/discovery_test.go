// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"errors"
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestDiscoveryIsAskedOnlyWhenItMayHaveChanged(t *testing.T) {
	now := time.Unix(1000, 0)
	c := &discoveryCache{now: func() time.Time { return now }, cache: map[string]cachedResources{}}
	c.invalidate()
	asked, fail := 0, error(nil)
	get := func(what string, want int) {
		t.Helper()
		asked = 0
		testenv.ErrorIs(t, testenv.Err(c.get("all", func() ([]*metav1.APIResourceList, error) { asked++; return nil, fail })), fail, "%s: error", what)
		testenv.True(t, asked == want, "%s: asked %d times, want %d", what, asked, want)
	}
	get("at first", 1)
	now = now.Add(cacheHoldoff / 2)
	get("soon after a change", 1)
	now = now.Add(cacheHoldoff)
	get("once settled", 1)
	get("again", 0)
	now = now.Add(refreshInterval / 2)
	get("later", 0)
	now = now.Add(refreshInterval)
	get("when the answer is old", 1)
	get("after that", 0)
	c.invalidate()
	get("after a change", 1)
	now = now.Add(cacheHoldoff)
	fail = errors.New("one group did not answer")
	get("a partial answer", 1)
	get("which is not kept", 1)
}

func TestGroupsWithoutObjectsAreLeftOut(t *testing.T) {
	var lists []*metav1.APIResourceList
	for _, version := range []string{"v1", "apps/v1", "custom.example/v1", "custom.example/v2", "other.example/v1"} {
		lists = append(lists, &metav1.APIResourceList{GroupVersion: version})
	}
	without := func(unused func(string) bool) (out []string) {
		for _, l := range usedGroups(lists, unused) {
			out = append(out, l.GroupVersion)
		}
		return out
	}
	testenv.Equal(t, len(without(nil)), len(lists), "where nothing is said there are")
	if got := without(func(group string) bool { return group == "custom.example" }); !slices.Equal(got, []string{"v1", "apps/v1", "other.example/v1"}) {
		t.Errorf("without the group that has no objects there are %v", got)
	}
	testenv.EqualSlices(t, without(func(string) bool { return true }), []string{"v1"}, "the core group is left out:")
}
