// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"testing"

	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/coracle-k8s/coracle/controllers/localpath"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestStorageClassIsCreatedOnce: the class is made once, is the default where there is none, and what administrators
// make of it stays.
func TestStorageClassIsCreatedOnce(t *testing.T) {
	apply := func(c *fake.Clientset, wanted bool) *storagev1.StorageClass {
		t.Helper()
		o := Options{Client: c, ClusterDNS: dns}
		if !wanted {
			o.Disabled = clusterconfig.Disabled{clusterconfig.PartLocalStorage}
		}
		testenv.NoError(t, Apply(t.Context(), o))
		all := testenv.Must(c.StorageV1().StorageClasses().List(t.Context(), metav1.ListOptions{}))(t)
		for _, s := range all.Items {
			if s.Name == storageClassName {
				return &s
			}
		}
		return nil
	}
	c := fake.NewClientset()
	if s := apply(c, false); s != nil {
		t.Errorf("made though it is disabled: %+v", s)
	}
	s := apply(c, true)
	if s == nil || s.Provisioner != localpath.Provisioner || s.Annotations[defaultClass] != "true" || *s.VolumeBindingMode != storagev1.VolumeBindingWaitForFirstConsumer ||
		!*s.AllowVolumeExpansion {
		t.Fatalf("%+v", s)
	}
	s.Annotations[defaultClass] = "false"
	testenv.Must(c.StorageV1().StorageClasses().Update(t.Context(), s, metav1.UpdateOptions{}))(t)
	testenv.True(t, apply(c, true).Annotations[defaultClass] == "false", "it is the default again")
	if s := apply(c, false); s != nil {
		t.Errorf("disabled, it stays: %+v", s)
	}

	other := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "other", Annotations: map[string]string{defaultClass: "true"}}, Provisioner: "example.com/other"}
	c = fake.NewClientset(other)
	testenv.True(t, apply(c, true).Annotations[defaultClass] == "false", "there are two defaults")
	userClass := &storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: storageClassName}, Provisioner: localpath.Provisioner}
	c = fake.NewClientset(userClass)
	for _, wanted := range []bool{true, false} {
		if s := apply(c, wanted); s == nil || len(s.Annotations) > 0 {
			t.Errorf("an administrator's own class is %+v", s)
		}
	}
}
