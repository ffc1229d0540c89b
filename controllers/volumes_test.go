// SPDX-License-Identifier: Apache-2.0

package controllers_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/kubernetes/pkg/volume"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/controllers/localpath"
	"github.com/coracle-k8s/coracle/controllers/term"
	"github.com/coracle-k8s/coracle/localvolume"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// volumeNodes are nodes whose volumes lie in folders of this machine, by their names.
type volumeNodes map[string]*localvolume.Folders

func (v volumeNodes) AskVolumes(_ context.Context, node string, r localvolume.Request) (localvolume.Response, error) {
	if v[node] == nil {
		return localvolume.Response{}, localpath.ErrAway
	}
	return v[node].Do(r)
}

// volumeFolder is a node's folder, on a filesystem that always has so many bytes left.
func volumeFolder(folder string, left int64) *localvolume.Folders {
	return localvolume.New(localvolume.Options{
		Paths: []string{folder}, Own: folder, Logger: quiet, Free: func(*os.File) (int64, error) { return left, nil },
	})
}

// localVolumes begins a term with local volumes on these nodes, which it makes, and a class for them.
func (c *cluster) localVolumes(t *testing.T, nodes volumeNodes, class string) {
	t.Helper()
	refusals := localpath.NewRefusals(time.Now)
	c.refusals = refusals
	var running sync.WaitGroup
	t.Cleanup(running.Wait)
	c.plugins = func(ctx context.Context, t *term.Term) ([]volume.VolumePlugin, error) {
		v, err := localpath.New(localpath.Options{
			Client: t.Client, NodeInformer: t.Informers.Core().V1().Nodes(), VolumeInformer: t.Informers.Core().V1().PersistentVolumes(),
			ClaimInformer: t.Informers.Core().V1().PersistentVolumeClaims(), PodInformer: t.Informers.Core().V1().Pods(),
			ClassInformer: t.Informers.Storage().V1().StorageClasses(), Nodes: nodes, Refusals: refusals, Context: ctx, Logger: quiet,
		})
		if err == nil {
			running.Go(func() { v.Run(ctx) })
		}
		return []volume.VolumePlugin{v}, err
	}
	t.Cleanup(func() { c.plugins, c.refusals = nil, nil })
	c.term(t)
	for name := range nodes {
		c.node(t, name)
		testenv.Must(c.client.CoreV1().Nodes().Patch(t.Context(), name, types.MergePatchType,
			[]byte(`{"metadata":{"labels":{"kubernetes.io/hostname":"`+name+`"}}}`), metav1.PatchOptions{}))(t)
	}
	testenv.Must(c.client.StorageV1().StorageClasses().Create(t.Context(), &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: class}, Provisioner: localpath.Provisioner, AllowVolumeExpansion: ptr.To(true),
		VolumeBindingMode: ptr.To(storagev1.VolumeBindingWaitForFirstConsumer),
	}, metav1.CreateOptions{}))(t)
	t.Cleanup(func() {
		_ = c.client.StorageV1().StorageClasses().Delete(context.Background(), class, metav1.DeleteOptions{})
	})
}

// claimed makes a claim, and a pod with it that is scheduled as the affinity says.
func (c *cluster) claimed(t *testing.T, ns, class, name, size string, affinity *corev1.NodeAffinity) {
	t.Helper()
	testenv.Must(c.client.CoreV1().PersistentVolumeClaims(ns).Create(t.Context(), &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(size)}},
		},
	}, metav1.CreateOptions{}))(t)
	template := podTemplate(name)
	template.Spec.Affinity = &corev1.Affinity{NodeAffinity: affinity}
	template.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{
		PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name},
	}}}
	testenv.Must(c.client.CoreV1().Pods(ns).Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: template.Labels}, Spec: template.Spec,
	}, metav1.CreateOptions{}))(t)
}

// required is the affinity to one node.
func required(node string) *corev1.NodeAffinity {
	return &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{onHost(node)}}}
}

// onHost is a selector of one node.
func onHost(name string) corev1.NodeSelectorTerm {
	return corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{
		Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{name},
	}}}
}

// TestLocalVolumesMoveOn: a claim that is larger than what is free on the nodes that its pod would rather run on ends
// up on the one that has room, though these go on being liked best.
func TestLocalVolumesMoveOn(t *testing.T) {
	c := shared
	nodes := volumeNodes{}
	for name, left := range map[string]int64{"best": 1 << 20, "second": 2 << 20, "last": 1 << 30} {
		nodes[name] = volumeFolder(filepath.Join(t.TempDir(), "storage"), left)
	}
	c.localVolumes(t, nodes, "moving")
	ns := c.namespace(t, "moving-volumes")
	for name := range nodes { // the scheduler has to know all three
		template := podTemplate("on-" + name)
		template.Spec.Affinity = &corev1.Affinity{NodeAffinity: required(name)}
		testenv.Must(c.client.CoreV1().Pods(ns).Create(t.Context(), &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "on-" + name, Labels: template.Labels}, Spec: template.Spec,
		}, metav1.CreateOptions{}))(t)
		eventually(t, "a pod on "+name, func(ctx context.Context) error { return c.bound(ctx, ns, "on-"+name, 1) })
	}
	liked := func(weight int32, name string) corev1.PreferredSchedulingTerm {
		return corev1.PreferredSchedulingTerm{Weight: weight, Preference: onHost(name)}
	}
	c.claimed(t, ns, "moving", "large", "5Mi", &corev1.NodeAffinity{
		PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{liked(100, "best"), liked(50, "second")},
	})
	eventually(t, "the pod has the node with room", func(ctx context.Context) error {
		pod, err := c.client.CoreV1().Pods(ns).Get(ctx, "large", metav1.GetOptions{})
		if err == nil && pod.Spec.NodeName != "last" {
			events, _ := c.client.CoreV1().Events(ns).List(ctx, metav1.ListOptions{})
			err = fmt.Errorf("it has %q", pod.Spec.NodeName)
			for _, e := range events.Items {
				err = fmt.Errorf("%w\n%d times: %s", err, max(e.Count, 1), e.Message)
			}
		}
		return err
	})
	eventually(t, "the events of one refusal by each of the others", func(ctx context.Context) error {
		events, err := c.client.CoreV1().Events(ns).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.kind=PersistentVolumeClaim,reason=ProvisioningFailed"})
		if err != nil {
			return err
		}
		var refused []string
		for _, e := range events.Items {
			refused = append(refused, fmt.Sprintf("%d times: %s", e.Count, e.Message))
		}
		for _, want := range []string{"1 times: ", "node best: 5.0 MiB are asked for and 1.0 MiB are free", "node second: 5.0 MiB are asked for and 2.0 MiB are free"} {
			if len(refused) != 2 || !strings.Contains(strings.Join(refused, "\n"), want) {
				return fmt.Errorf("no %q among %q", want, refused)
			}
		}
		return nil
	})
}

// TestLocalVolumesFollowTheirClaims: upstream's controllers and scheduler have a directory made for a claim when its
// pod has a node, let it grow, say why one is refused, and have it removed.
func TestLocalVolumesFollowTheirClaims(t *testing.T) {
	c := shared
	folder := filepath.Join(t.TempDir(), "storage")
	const class, node = "directories", "volumes-node"
	c.localVolumes(t, volumeNodes{node: volumeFolder(folder, 1<<30)}, class)
	ns := c.namespace(t, "local-volumes")
	claims := c.client.CoreV1().PersistentVolumeClaims(ns)
	claimed := func(name, size string) {
		t.Helper()
		c.claimed(t, ns, class, name, size, required(node))
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
	claim := testenv.Must(claims.Get(t.Context(), "data", metav1.GetOptions{}))(t)
	path := filepath.Join(folder, fmt.Sprintf("pvc-%s_%s_data", claim.UID, ns))
	if i, err := os.Stat(path); err != nil || !i.IsDir() || i.Mode().Perm() != 0o777 {
		t.Errorf("the directory: %v, %v", i, err)
	}
	grow := func(to string) {
		t.Helper()
		testenv.NoError(t, testenv.Err(claims.Patch(t.Context(), "data", types.MergePatchType, []byte(`{"spec":{"resources":{"requests":{"storage":"`+to+`"}}}}`), metav1.PatchOptions{})))
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
	testenv.ErrorIs(t, testenv.Err(os.Stat(path)), os.ErrNotExist, "the directory of a volume that is gone")
}

// TestLocalVolumesOfPodsThatNameTheirNode: the volume of a claim whose pod was given its node by its user is made on
// that node, whichever of claim, pod and class is made first.
func TestLocalVolumesOfPodsThatNameTheirNode(t *testing.T) {
	c := shared
	const class, node, late = "named-node", "named", "named-node-late"
	folder := filepath.Join(t.TempDir(), "storage")
	c.localVolumes(t, volumeNodes{node: volumeFolder(folder, 1<<30), "other": volumeFolder(filepath.Join(t.TempDir(), "storage"), 1<<30)}, class)
	ns := c.namespace(t, "named-nodes")
	spec := func(class string) corev1.PersistentVolumeClaimSpec {
		return corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Mi")}},
		}
	}
	claim := func(name, class string) {
		t.Helper()
		testenv.Must(c.client.CoreV1().PersistentVolumeClaims(ns).Create(t.Context(),
			&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec(class)}, metav1.CreateOptions{}))(t)
	}
	pod := func(name string, source corev1.VolumeSource) {
		t.Helper()
		template := podTemplate(name)
		template.Spec.NodeName, template.Spec.Volumes = node, []corev1.Volume{{Name: "v", VolumeSource: source}}
		testenv.Must(c.client.CoreV1().Pods(ns).Create(t.Context(), &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: template.Labels}, Spec: template.Spec,
		}, metav1.CreateOptions{}))(t)
	}
	of := func(claim string) corev1.VolumeSource {
		return corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}}
	}
	made := func(name string) {
		t.Helper()
		eventually(t, "the volume of "+name+" is made on the pod's node", func(ctx context.Context) error {
			got, err := c.client.CoreV1().PersistentVolumeClaims(ns).Get(ctx, name, metav1.GetOptions{})
			if err == nil && got.Status.Phase != corev1.ClaimBound {
				err = fmt.Errorf("the claim is %s, with the annotations %v", got.Status.Phase, got.Annotations)
			}
			if err == nil {
				err = testenv.Err(os.Stat(filepath.Join(folder, fmt.Sprintf("pvc-%s_%s_%s", got.UID, ns, name))))
			}
			return err
		})
	}

	claim("first", class)
	pod("second", of("first"))
	made("first")
	pod("earlier", of("later"))
	claim("later", class)
	made("later")
	pod("own", corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{
		VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{Spec: spec(class)},
	}})
	made("own-v")
	claim("classless", late)
	pod("waits", of("classless"))
	testenv.Must(c.client.StorageV1().StorageClasses().Create(t.Context(), &storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: late}, Provisioner: localpath.Provisioner,
		VolumeBindingMode: ptr.To(storagev1.VolumeBindingWaitForFirstConsumer),
	}, metav1.CreateOptions{}))(t)
	t.Cleanup(func() {
		_ = c.client.StorageV1().StorageClasses().Delete(context.Background(), late, metav1.DeleteOptions{})
	})
	made("classless")
}
