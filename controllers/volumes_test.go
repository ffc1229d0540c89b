// SPDX-License-Identifier: Apache-2.0

package controllers_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kubernetes/pkg/volume"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/controllers/localpath"
	"github.com/coracle-k8s/coracle/controllers/term"
	"github.com/coracle-k8s/coracle/internal/localvolume"
)

// onlyNode is a node whose volumes lie in a folder of this machine.
type onlyNode struct {
	name    string
	folders *localvolume.Folders
}

func (o onlyNode) AskVolumes(_ context.Context, node string, r localvolume.Request) (localvolume.Answer, error) {
	if node != o.name {
		return localvolume.Answer{}, localpath.ErrAway
	}
	return o.folders.Do(r)
}

// TestLocalVolumes: upstream's controllers and scheduler have a directory made for a claim when its pod has a node, let it grow, say why one is refused, and
// have it removed.
func TestLocalVolumes(t *testing.T) {
	c := shared
	folder := filepath.Join(t.TempDir(), "storage")
	node := onlyNode{"volumes-node", localvolume.New(localvolume.Options{
		Paths: []string{folder}, Own: folder, Logger: quiet, Free: func(*os.File) (int64, error) { return 1 << 30, nil },
	})}
	c.plugins = func(ctx context.Context, t *term.Term) ([]volume.VolumePlugin, error) {
		v, err := localpath.New(localpath.Options{
			Client: t.Client, NodeInformer: t.Informers.Core().V1().Nodes(), VolumeInformer: t.Informers.Core().V1().PersistentVolumes(),
			Nodes: node, Context: ctx, Logger: quiet,
		})
		return []volume.VolumePlugin{v}, err
	}
	t.Cleanup(func() { c.plugins = nil })
	c.term(t)
	ns := c.namespace(t, "local-volumes")
	c.node(t, node.name)
	if _, err := c.client.CoreV1().Nodes().Patch(t.Context(), node.name, types.MergePatchType,
		[]byte(`{"metadata":{"labels":{"kubernetes.io/hostname":"`+node.name+`"}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	class, err := c.client.StorageV1().StorageClasses().Create(t.Context(), &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: "directories"}, Provisioner: localpath.Provisioner, AllowVolumeExpansion: ptr.To(true),
		VolumeBindingMode: ptr.To(storagev1.VolumeBindingWaitForFirstConsumer),
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.client.StorageV1().StorageClasses().Delete(context.Background(), class.Name, metav1.DeleteOptions{})
	})
	claims := c.client.CoreV1().PersistentVolumeClaims(ns)
	claimed := func(name, size string) {
		t.Helper()
		if _, err := claims.Create(t.Context(), &corev1.PersistentVolumeClaim{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec: corev1.PersistentVolumeClaimSpec{
				StorageClassName: &class.Name, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
				Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}},
			},
		}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		template := podTemplate(name)
		template.Spec.NodeSelector = map[string]string{corev1.LabelHostname: node.name}
		template.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name},
		}}}
		if _, err := c.client.CoreV1().Pods(ns).Create(t.Context(), &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: template.Labels}, Spec: template.Spec,
		}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	size := func(ctx context.Context, name, want string) error {
		claim, err := claims.Get(ctx, name, metav1.GetOptions{})
		if err == nil && (claim.Status.Phase != corev1.ClaimBound || !claim.Status.Capacity.Storage().Equal(resource.MustParse(want))) {
			err = fmt.Errorf("it is %s with %s", claim.Status.Phase, claim.Status.Capacity.Storage())
		}
		return err
	}
	event := func(name, want string) {
		t.Helper()
		eventually(t, "an event says why", func(ctx context.Context) error {
			events, err := c.client.CoreV1().Events(ns).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=" + name})
			for _, e := range events.Items {
				if strings.Contains(e.Message, want) {
					return nil
				}
			}
			return errors.Join(err, fmt.Errorf("no %q", want))
		})
	}

	claimed("data", "5Mi")
	eventually(t, "the claim is bound", func(ctx context.Context) error { return size(ctx, "data", "5Mi") })
	eventually(t, "its pod has a node", func(ctx context.Context) error { return c.bound(ctx, ns, "data", 1) })
	claim, err := claims.Get(t.Context(), "data", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(folder, fmt.Sprintf("pvc-%s_%s_data", claim.UID, ns))
	if i, err := os.Stat(path); err != nil || !i.IsDir() || i.Mode().Perm() != 0o777 {
		t.Errorf("the directory: %v, %v", i, err)
	}
	grow := func(to string) {
		t.Helper()
		if _, err := claims.Patch(t.Context(), "data", types.MergePatchType, []byte(`{"spec":{"resources":{"requests":{"storage":"`+to+`"}}}}`), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	grow("1Gi")
	eventually(t, "the claim has grown", func(ctx context.Context) error { return size(ctx, "data", "1Gi") })

	claimed("large", "2Gi")
	event("large", "node volumes-node: 2.0 GiB are asked for and 1.0 GiB are free in "+folder)

	for _, name := range []string{"data", "large"} {
		if err := errors.Join(c.client.CoreV1().Pods(ns).Delete(t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)}),
			claims.Delete(t.Context(), name, metav1.DeleteOptions{})); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the volume is gone", func(ctx context.Context) error {
		_, err := c.client.CoreV1().PersistentVolumes().Get(ctx, "pvc-"+string(claim.UID), metav1.GetOptions{})
		return gone(err)
	})
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory of a volume that is gone: %v", err)
	}
}
