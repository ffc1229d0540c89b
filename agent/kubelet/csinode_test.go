// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/informers"
	clientset "k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/fake"
	storagelisters "k8s.io/client-go/listers/storage/v1"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/cmd/kubelet/app"
	"k8s.io/kubernetes/pkg/volume/csi"

	"github.com/coracle-k8s/coracle/internal/kubecompat"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// The kubelet asks a plugin what it is by its methods, so ours has to have all of upstream's.
func TestPatientPluginIsAllThatUpstreamsIs(t *testing.T) {
	plugins := testenv.Must(app.ProbeVolumePlugins(t.Context(), utilfeature.DefaultFeatureGate))(t)
	before := len(plugins)
	testenv.NoError(t, replaceCSIPlugin(plugins, false))
	found := 0
	for _, p := range plugins {
		ours, ok := p.(patientCSI)
		if !ok {
			continue
		}
		found++
		upstreams := reflect.TypeOf(ours.csiPlugin)
		for i := range upstreams.NumMethod() {
			if name := upstreams.Method(i).Name; !reflect.ValueOf(ours).MethodByName(name).IsValid() {
				t.Errorf("upstream's plugin has a method %s that ours does not have", name)
			}
		}
	}
	testenv.False(t, found != 1 || len(plugins) != before, "%d of %d plugins are ours, want one of %d", found, len(plugins), before)
}

// startingHost is as much of a kubelet as initializing the CSI plugin takes.
type startingHost struct {
	kubeletHost
	client   clientset.Interface
	reported chan error
}

func (h startingHost) GetNodeName() types.NodeName                         { return "one" }
func (h startingHost) GetKubeClient() clientset.Interface                  { return h.client }
func (h startingHost) SetKubeletError(err error)                           { h.reported <- err }
func (h startingHost) GetInformerFactory() informers.SharedInformerFactory { return nil }
func (h startingHost) CSIDriverLister() storagelisters.CSIDriverLister     { return nil }

func (h startingHost) GetNodeLabels() (map[string]string, error) {
	n, err := h.client.CoreV1().Nodes().Get(context.Background(), "one", metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return n.Labels, nil
}

func (h startingHost) GetServiceAccountTokenFunc() func(string, string, *authenticationv1.TokenRequest) (*authenticationv1.TokenRequest, error) {
	return nil
}

// startKubelet starts a kubelet's plugin while the node's CSINode cannot be written for so long.
func startKubelet(t *testing.T, busy time.Duration, returns bool) startingHost {
	client := fake.NewClientset(node())
	began := time.Now()
	client.PrependReactor("create", "csinodes", func(clienttesting.Action) (bool, runtime.Object, error) {
		return time.Since(began) < busy, nil, errors.New("the store is busy")
	})
	return initialize(t, client, returns)
}

func node() *corev1.Node { return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "one", UID: "1"}} }

func initialize(t *testing.T, client clientset.Interface, returns bool) startingHost {
	host := startingHost{client: client, reported: make(chan error, 100)} // more than there are reports
	p := patientCSI{csiPlugin: csi.ProbeVolumePlugins()[0].(csiPlugin), returns: returns}
	testenv.NoError(t, p.Init(host))
	return host
}

// The kubelet registers its node while upstream's plugin waits for 250 ms between two tries.
func TestCSINodeIsWrittenWhenItsNodeIsRegistered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		host := initialize(t, client, false)
		time.Sleep(100 * time.Millisecond) // of the bubble's clock: upstream has tried after 0, 10 and 60 ms
		testenv.Must(client.CoreV1().Nodes().Create(t.Context(), node(), metav1.CreateOptions{}))(t)
		time.Sleep(hastenPause) // of the bubble's clock: the next look is due by then
		synctest.Wait()
		testenv.Must(client.StorageV1().CSINodes().Get(t.Context(), "one", metav1.GetOptions{}))(t)
		var last error
		for len(host.reported) > 0 {
			last = <-host.reported
		}
		testenv.NoError(t, last, "what the kubelet knows of its CSINode")
		time.Sleep(time.Minute) // of the bubble's clock: upstream's own try, which nothing can be asked about, ends
	})
}

// The API server fails for longer than the 140 seconds after which upstream's plugin ends the process.
func TestKubeletWaitsForItsCSINode(t *testing.T) {
	exit := klog.OsExit
	defer func() { klog.OsExit = exit }()
	klog.OsExit = func(int) { panic("the kubelet ended its process") }
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		host := startKubelet(t, time.Hour, false)
		var last error
		for last = range host.reported {
			if last == nil {
				break
			}
		}
		if waited := time.Since(began); waited < time.Hour || waited > time.Hour+time.Minute {
			t.Errorf("the kubelet was ready after %v, want soon after an hour", waited)
		}
		var got *storagev1.CSINode
		got, err := host.client.StorageV1().CSINodes().Get(context.Background(), "one", metav1.GetOptions{})
		testenv.False(t, err != nil || got.OwnerReferences[0].UID != "1", "the CSINode object: %v, %v", got, err)
	})
}

// The kubelet's first status comes before the object is written where the API server is slow.
func TestNodeThatReturnsIsReadyBeforeItsCSINodeIsWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := startKubelet(t, time.Minute, true)
		time.Sleep(2 * time.Minute) // of the bubble's clock: by then the object can be written
		testenv.Must(host.client.StorageV1().CSINodes().Get(t.Context(), "one", metav1.GetOptions{}))(t)
		for len(host.reported) > 0 {
			testenv.Check(t, <-host.reported, "the node is not ready")
		}
	})
}

// A controller's plugin puts itself where the kubelet's belongs, and what was there before comes back when it is built.
// A kubelet that starts meanwhile must not be taken for what was put there.
func TestKubeletStartsWhileAControllerIsBuilt(t *testing.T) {
	var err error
	began, ended := make(chan struct{}), make(chan struct{})
	kubecompat.RestoreAfter(func() {
		go func() {
			defer close(ended)
			close(began)
			err = patientCSI{csiPlugin: csi.ProbeVolumePlugins()[0].(csiPlugin)}.Init(startingHost{})
		}()
		<-began
		select {
		case <-ended:
			t.Error("the kubelet's plugin was initialized while a controller was built")
		case <-time.After(50 * time.Millisecond): // it must not end, however long one waits
		}
	})
	if <-ended; err != nil {
		t.Error(err)
	}
	if err := kubecompat.Write(); err == nil || !strings.Contains(err.Error(), "CSI client") { // not that there is no kubelet
		t.Errorf("writing the kubelet's object without a client: %v", err)
	}
}
