// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"errors"
	"net/http"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/names"

	"github.com/coracle-k8s/coracle/test/testenv"
)

type overTransport struct{}

func (overTransport) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, errors.New("the term is over")
}

// TestTermEndsWhileControllersAreBuilt: a term whose transport is closed already does not end the process.
func TestTermEndsWhileControllersAreBuilt(t *testing.T) {
	before := klog.OsExit
	t.Cleanup(func() { klog.OsExit = before })
	klog.OsExit = func(int) { panic("the process would have ended") }
	cc := app.ControllerContext{
		ClientBuilder:   clients{base: &rest.Config{Host: "in-memory", Transport: overTransport{}}},
		InformerFactory: informers.NewSharedInformerFactory(fake.NewClientset(), 0),
	}
	c, err := newNamespaceController(t.Context(), cc, nil)
	testenv.False(t, err != nil || c.Name() != names.NamespaceController, "%v, %v", c, err)
}

func TestDiscoveryIsNeverEmpty(t *testing.T) {
	gone := errors.New("gone")
	some := []*metav1.APIResourceList{{GroupVersion: "apps/v1"}}
	for _, tt := range []struct {
		lists []*metav1.APIResourceList
		err   error
		want  string
		fails bool
	}{
		{some, nil, "apps/v1", false}, {some, gone, "apps/v1", true}, {nil, gone, "v1", true}, {nil, nil, "v1", true},
	} {
		got, err := neverEmpty(func() ([]*metav1.APIResourceList, error) { return tt.lists, tt.err })()
		testenv.True(t, len(got) == 1 && got[0].GroupVersion == tt.want && (err != nil) == tt.fails,
			"%v, %v: got %v, %v", tt.lists, tt.err, got, err)
	}
}
