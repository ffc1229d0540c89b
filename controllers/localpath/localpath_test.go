// SPDX-License-Identifier: Apache-2.0

package localpath

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	volumeerrors "k8s.io/cloud-provider/volume/errors"
	storagehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/volume"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/localvolume"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const (
	uid  = "0a1b2c3d-0000-4000-8000-00000000abcd"
	name = "pvc-" + uid
	dir  = name + "_default_data"
)

// nodes are nodes that remember what they were asked for.
type nodes struct {
	folder string
	free   int64
	quota  bool

	mu    sync.Mutex
	away  map[string]bool
	fails error
	asked []string
}

func (n *nodes) AskVolumes(_ context.Context, node string, r localvolume.Request) (localvolume.Response, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.away[node] {
		return localvolume.Response{}, ErrAway
	}
	n.asked = append(n.asked, node+" "+string(r.Op)+" "+r.Folder+" "+r.Name)
	folder := r.Folder
	if folder == "" {
		folder = n.folder
	}
	return localvolume.Response{Path: folder + "/" + r.Name, Free: n.free, Quota: n.quota}, n.fails
}

func (n *nodes) setAway(node string, away bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.away[node] = away
}

// take is what was asked for since the last time.
func (n *nodes) take() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := strings.Join(n.asked, "; ")
	n.asked = nil
	return out
}

type fixture struct {
	*Volumes
	nodes  *nodes
	client *fake.Clientset
	board  *status.Board
}

func newFixture(t *testing.T, names ...string) *fixture {
	t.Helper()
	f := &fixture{nodes: &nodes{folder: "/storage", free: 1 << 30, away: map[string]bool{}}, client: fake.NewClientset(), board: status.NewBoard(time.Now)}
	for _, n := range names {
		f.node(t, n)
	}
	factory := informers.NewSharedInformerFactory(f.client, 0)
	ctx, cancel := context.WithCancel(context.Background())
	v, err := New(Options{
		Client: f.client, NodeInformer: factory.Core().V1().Nodes(), VolumeInformer: factory.Core().V1().PersistentVolumes(),
		ClaimInformer: factory.Core().V1().PersistentVolumeClaims(), PodInformer: factory.Core().V1().Pods(), ClassInformer: factory.Storage().V1().StorageClasses(), Nodes: f.nodes, Context: ctx, Part: f.board.Part("local storage"),
		Logger: slog.New(slog.DiscardHandler),
	})
	testenv.NoError(t, err)
	f.Volumes = v
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	for _, resource := range []string{"nodes", "persistentvolumes"} { // a fake tells a watch nothing of what was deleted between the list and its beginning
		testenv.Until(t, 2*time.Minute, resource+" are watched", func() bool {
			return slices.ContainsFunc(f.client.Actions(), func(a clienttesting.Action) bool { return a.Matches("watch", resource) })
		})
	}
	t.Cleanup(func() { cancel(); factory.Shutdown() })
	return f
}

func (f *fixture) node(t *testing.T, name string) {
	t.Helper()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: "host-of-" + name}}}
	testenv.Must(f.client.CoreV1().Nodes().Create(t.Context(), n, metav1.CreateOptions{}))(t)
}

func claim() *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: "data", Namespace: "default", UID: types.UID(uid)},
		Spec: corev1.PersistentVolumeClaimSpec{
			AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources:   corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("5Mi")}},
		},
	}
}

func (f *fixture) provision(t *testing.T, c *corev1.PersistentVolumeClaim, parameters map[string]string, node string) (*corev1.PersistentVolume, error) {
	t.Helper()
	p, err := f.NewProvisioner(klog.Background(), volume.VolumeOptions{
		PVName: name, PVC: c, Parameters: parameters, PersistentVolumeReclaimPolicy: corev1.PersistentVolumeReclaimDelete,
	})
	testenv.NoError(t, err)
	var n *corev1.Node
	if node != "" {
		n, err = f.o.NodeInformer.Lister().Get(node)
		testenv.NoError(t, err)
	}
	return p.Provision(n, nil)
}

// made is a volume as the controller of volumes writes it down.
func (f *fixture) made(t *testing.T) *corev1.PersistentVolume {
	t.Helper()
	pv := testenv.Must(f.provision(t, claim(), nil, "n1"))(t)
	pv.Annotations[storagehelpers.AnnDynamicallyProvisioned] = Provisioner
	pv.Spec.ClaimRef = &corev1.ObjectReference{Namespace: "default", Name: "data", UID: uid}
	f.nodes.take()
	return pv
}

func (f *fixture) delete(t *testing.T, pv *corev1.PersistentVolume) error {
	t.Helper()
	d := testenv.Must(f.NewDeleter(klog.Background(), volume.NewSpecFromPersistentVolume(pv, false)))(t)
	return d.Delete()
}

func (f *fixture) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); f.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}

func TestProvisionMakesFolderOrSaysWhyNot(t *testing.T) {
	f := newFixture(t, "n1")
	pv, err := f.provision(t, claim(), nil, "n1")
	testenv.NoError(t, err)
	testenv.Equal(t, f.nodes.take(), "n1 make  "+dir, "asked:")
	if pv.Spec.Local == nil || pv.Spec.Local.Path != "/storage/"+dir || hostOf(pv) != "host-of-n1" || pv.Annotations[nodeAnnotation] != "n1" {
		t.Errorf("the volume is %+v", pv)
	}
	capacity := pv.Spec.Capacity[corev1.ResourceStorage]
	testenv.Equal(t, capacity.String(), "5Mi", "its capacity is")
	if pv, err = f.provision(t, claim(), map[string]string{"nodePath": "/disk"}, "n1"); err != nil || pv.Spec.Local.Path != "/disk/"+dir {
		t.Errorf("in another folder: %v, %v", pv, err)
	}
	f.nodes.take()

	for want, change := range map[string]func(c *corev1.PersistentVolumeClaim, p map[string]string) string{
		"not ReadWriteMany": func(c *corev1.PersistentVolumeClaim, _ map[string]string) string {
			c.Spec.AccessModes = append(c.Spec.AccessModes, corev1.ReadWriteMany)
			return "n1"
		},
		"volumeMode Block": func(c *corev1.PersistentVolumeClaim, _ map[string]string) string {
			c.Spec.VolumeMode = ptr.To(corev1.PersistentVolumeBlock)
			return "n1"
		},
		"spec.selector": func(c *corev1.PersistentVolumeClaim, _ map[string]string) string {
			c.Spec.Selector = &metav1.LabelSelector{}
			return "n1"
		},
		"pathPattern":          func(_ *corev1.PersistentVolumeClaim, p map[string]string) string { p["pathPattern"] = "x"; return "n1" },
		"not an absolute path": func(_ *corev1.PersistentVolumeClaim, p map[string]string) string { p["nodePath"] = "../x"; return "n1" },
		"WaitForFirstConsumer": func(*corev1.PersistentVolumeClaim, map[string]string) string { return "" },
	} {
		c, p := claim(), map[string]string{}
		node := change(c, p)
		testenv.WantError(t, testenv.Err(f.provision(t, c, p, node)), want)
	}
	testenv.Equal(t, f.nodes.take(), "", "a node was asked for what cannot be:")
	f.nodes.fails = errors.New("5.0 MiB are asked for and 1.0 MiB are free in /storage")
	testenv.WantError(t, testenv.Err(f.provision(t, claim(), nil, "n1")), "node n1: 5.0 MiB are asked for")
	f.nodes.fails, f.nodes.folder = nil, "/etc/.."
	if pv, err := f.provision(t, claim(), nil, "n1"); err == nil {
		t.Errorf("a node that answers with a path of its own choice: %+v", pv.Spec.Local)
	}
}

func TestDeleteWaitsForUnreachableNode(t *testing.T) {
	f := newFixture(t, "n1")
	pv := f.made(t)
	testenv.NoError(t, f.delete(t, pv))
	testenv.Equal(t, f.nodes.take(), "n1 remove /storage "+dir, "asked:")
	// k3s made hostPath volumes, and older ones without the annotation.
	pv.Spec.HostPath, pv.Spec.Local = &corev1.HostPathVolumeSource{Path: pv.Spec.Local.Path}, nil
	delete(pv.Annotations, nodeAnnotation)
	testenv.NoError(t, f.delete(t, pv))
	testenv.Equal(t, f.nodes.take(), "n1 remove /storage "+dir, "asked:")
	f.nodes.setAway("n1", true)
	if err := f.delete(t, pv); !volumeerrors.IsDeletedVolumeInUse(err) || !strings.Contains(err.Error(), "n1 is away") {
		t.Errorf("while the node is away: %v", err)
	}
	f.nodes.setAway("n1", false)
	f.nodes.fails = errors.New("read-only file system")
	if err := f.delete(t, pv); err == nil || volumeerrors.IsDeletedVolumeInUse(err) {
		t.Errorf("a node that cannot: %v", err)
	}
}

// TestRetainedVolumeIsNotDeletedByStalePolicy: the cache still has the policy Delete, and a user has said Retain.
func TestRetainedVolumeIsNotDeletedByStalePolicy(t *testing.T) {
	f := newFixture(t, "n1")
	pv := testenv.Must(f.provision(t, claim(), nil, "n1"))(t)
	f.nodes.take()
	now := pv.DeepCopy()
	now.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
	testenv.Must(f.client.CoreV1().PersistentVolumes().Create(t.Context(), now, metav1.CreateOptions{}))(t)
	d := testenv.Must(f.NewDeleter(klog.Background(), volume.NewSpecFromPersistentVolume(pv, false)))(t)
	if err := d.Delete(); !volumeerrors.IsDeletedVolumeInUse(err) {
		t.Errorf("deleting it: %v", err)
	}
	testenv.Equal(t, f.nodes.take(), "", "the node was asked for")
}

// TestForgedVolumeDeletesNothingForeign: a user who may write PersistentVolumes has no files of others removed.
func TestForgedVolumeDeletesNothingForeign(t *testing.T) {
	f := newFixture(t, "n1")
	for _, path := range []string{
		"/etc", "/", "", "/storage", "/storage/../etc", "/storage/pvc-ffffffff-0000-4000-8000-00000000abcd_default_data", "/storage/" + name, "/storage/" + dir + "/..",
		"storage/" + dir, "/storage/" + dir + "/", "/storage/x" + dir,
	} {
		pv := f.made(t)
		pv.Spec.Local.Path = path
		if err := f.delete(t, pv); err == nil || !strings.Contains(err.Error(), "nothing there is touched") {
			t.Errorf("%q: %v", path, err)
		}
	}
	pv := f.made(t)
	for provisioner, want := range map[string]bool{Provisioner: true, "": false, "other.example.com": false} {
		pv.Annotations[storagehelpers.AnnDynamicallyProvisioned] = provisioner
		testenv.Equal(t, f.CanSupport(volume.NewSpecFromPersistentVolume(pv, false)), want, "a volume of %q is ours:", provisioner)
	}
	pv.Annotations, pv.Spec.NodeAffinity = nil, nil
	testenv.WantError(t, f.delete(t, pv), "which node")
	testenv.Equal(t, f.nodes.take(), "", "asked:")
}

func (f *fixture) record(t *testing.T) map[string]string {
	t.Helper()
	m, err := f.client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(t.Context(), leftoversConfigMap, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	testenv.NoError(t, err)
	return m.Data
}

// TestVolumesOfADeletedNode: volumes of a node that is no longer of the cluster go, and their directories when it comes
// back.
func TestVolumesOfADeletedNode(t *testing.T) {
	f := newFixture(t, "n1", "n2")
	pv := f.made(t)
	testenv.NoError(t, f.client.CoreV1().Nodes().Delete(t.Context(), "n1", metav1.DeleteOptions{}))
	testenv.Until(t, 2*time.Minute, "the cache has no such node", func() bool {
		_, err := f.o.NodeInformer.Lister().Get("n1")
		return err != nil
	})
	for range 2 { // a second time after a crash of the leader
		testenv.NoError(t, f.delete(t, pv))
	}
	// What another client wrote there does no harm: paths of no volume, and the path of a volume that there is.
	live := strings.Replace(dir, "0a1b", "ffff", 1)
	testenv.Must(f.client.CoreV1().PersistentVolumes().Create(t.Context(), &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: strings.Replace(name, "0a1b", "ffff", 1)},
	}, metav1.CreateOptions{}))(t)
	testenv.NoError(t, f.updateLeftovers(t.Context(), func(data map[string]string) { data["n1"] += "\n/etc\n/storage/" + live }))
	if got, want := f.record(t)["n1"], "/storage/"+dir+"\n/etc\n/storage/"+live; got != want {
		t.Fatalf("written down: %q, want %q", got, want)
	}
	f.run(t)
	state := func(want string) {
		t.Helper()
		testenv.Eventually(t, 2*time.Minute, "the board says "+want, func() error {
			if c := f.board.Components()[0]; c.State != status.Running || c.Message != want {
				return errors.New(c.Message)
			}
			return nil
		})
	}
	state("directories of removed volumes are left on nodes that are away: n1")
	f.node(t, "n1")
	testenv.Until(t, 2*time.Minute, "the record is empty", func() bool { return f.record(t) == nil })
	testenv.Equal(t, f.nodes.take(), "n1 remove /storage "+dir, "asked:")
	state("")
}

// TestRetainedVolumeKeepsItsDirectory: a volume that is to be retained after all can be deleted without its directory,
// and one that is to be removed cannot.
func TestRetainedVolumeKeepsItsDirectory(t *testing.T) {
	f := newFixture(t, "n1")
	f.run(t)
	volumes := f.client.CoreV1().PersistentVolumes()
	pv := f.made(t)
	pv.Finalizers = []string{"example.com/other", storagehelpers.PVDeletionInTreeProtectionFinalizer}
	pv.Status.Phase = corev1.VolumeBound
	testenv.Must(volumes.Create(t.Context(), pv, metav1.CreateOptions{}))(t)
	other := pv.DeepCopy()
	other.Name, other.Annotations = "other", map[string]string{storagehelpers.AnnDynamicallyProvisioned: "example.com/other"}
	other.Spec.PersistentVolumeReclaimPolicy = corev1.PersistentVolumeReclaimRetain
	testenv.Must(volumes.Create(t.Context(), other, metav1.CreateOptions{}))(t)
	for _, step := range []struct {
		policy corev1.PersistentVolumeReclaimPolicy
		want   string
	}{
		{corev1.PersistentVolumeReclaimRetain, "example.com/other"},
		{corev1.PersistentVolumeReclaimDelete, "example.com/other " + storagehelpers.PVDeletionInTreeProtectionFinalizer},
	} {
		pv := testenv.Must(volumes.Get(t.Context(), name, metav1.GetOptions{}))(t)
		pv.Spec.PersistentVolumeReclaimPolicy = step.policy
		testenv.Must(volumes.Update(t.Context(), pv, metav1.UpdateOptions{}))(t)
		testenv.Eventually(t, 2*time.Minute, "the finalizers are "+step.want, func() error {
			pv, err := volumes.Get(t.Context(), name, metav1.GetOptions{})
			if got := strings.Join(pv.Finalizers, " "); err == nil && got != step.want {
				err = errors.New(got)
			}
			return err
		})
	}
	testenv.Equal(t, len(testenv.Must(volumes.Get(t.Context(), "other", metav1.GetOptions{}))(t).Finalizers), 2, "another provisioner's volume:")
	released := pv.DeepCopy()
	released.Finalizers, released.Status.Phase = nil, corev1.VolumeReleased
	if _, change := finalizersOf(released); change {
		t.Error("a volume that upstream is about to delete gets its finalizer back")
	}
}

func TestExpandIsRefusedBeyondFreeSpace(t *testing.T) {
	f := newFixture(t, "n1")
	spec := volume.NewSpecFromPersistentVolume(f.made(t), false)
	from := resource.MustParse("5Mi")
	size := testenv.Must(f.ExpandVolumeDevice(spec, resource.MustParse("1Gi"), from))(t)
	testenv.Equal(t, size.String(), "1Gi", "it grew to")
	testenv.Equal(t, f.nodes.take(), "n1 space /storage ", "asked:")
	testenv.WantError(t, testenv.Err(f.ExpandVolumeDevice(spec, resource.MustParse("2Gi"), from)), "1.0 GiB left in /storage")
}

// TestQuotaIsAnnotatedAndGrowsWithItsVolume: a volume that its node's filesystem limits says so, and its limit grows
// with it.
func TestQuotaIsAnnotatedAndGrowsWithItsVolume(t *testing.T) {
	f := newFixture(t, "n1")
	if pv := f.made(t); pv.Annotations[QuotaAnnotation] != "" {
		t.Errorf("a volume without a limit says that it has one: %v", pv.Annotations)
	}
	f.nodes.quota = true
	pv := f.made(t)
	testenv.False(t, pv.Annotations[QuotaAnnotation] != "project", "a volume with a limit does not say so: %v", pv.Annotations)
	spec, from := volume.NewSpecFromPersistentVolume(pv, false), resource.MustParse("5Mi")
	size := testenv.Must(f.ExpandVolumeDevice(spec, resource.MustParse("6Mi"), from))(t)
	testenv.Equal(t, size.String(), "6Mi", "it grew to")
	testenv.Equal(t, f.nodes.take(), "n1 space /storage ; n1 grow /storage "+dir, "asked:")
	testenv.Fails(t, testenv.Err(f.ExpandVolumeDevice(spec, resource.MustParse("2Gi"), from)), "it grows beyond its disk")
	testenv.Equal(t, f.nodes.take(), "n1 space /storage ", "asked:")
}
