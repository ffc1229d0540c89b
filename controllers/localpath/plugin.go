// SPDX-License-Identifier: Apache-2.0

// Package localpath gives claims of StorageClasses with the provisioner rancher.io/local-path a directory on the node
// where their pod runs, and removes that when the claim is gone.
//
// It is a volume plugin of upstream's PersistentVolume controller and of its controller for expansion, so that it needs
// no cache and no lease of its own, and no loop but Run, which waits for nodes that come back and for volumes that are
// to be retained after all. The nodes do the work (localvolume) and judge every path by themselves. The package never
// removes a volume that another one may have made: the annotation of who provisioned it, the name and the folder all
// have to agree.
package localpath

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/kubernetes"
	storagehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/volume"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/localvolume"
)

// Provisioner is the name in StorageClasses. It is Rancher's, so that manifests that were made for k3s work.
const Provisioner = "rancher.io/local-path"

// nodeAnnotation names a volume's node, as Rancher's provisioner writes it.
const nodeAnnotation = "local.path.provisioner/selected-node"

// QuotaAnnotation is on a volume that holds no more than its size: "project" is by a project quota of the node's
// filesystem.
const (
	QuotaAnnotation = "coracle.dev/quota"
	projectQuota    = "project"
)

// Nodes reaches the nodes.
type Nodes interface {
	// AskVolumes asks a node. It wraps ErrAway where the node has no connection to this server.
	AskVolumes(ctx context.Context, node string, r localvolume.Request) (localvolume.Response, error)
}

// ErrAway is a node that cannot be asked now.
var ErrAway = errors.New("the node has no connection to the server that leads")

// Options are all required but Refusals, Part and Logger.
type Options struct {
	// Client has the rights of an administrator.
	Client kubernetes.Interface
	// NodeInformer and VolumeInformer are shared with others, who run them.
	NodeInformer   coreinformers.NodeInformer
	VolumeInformer coreinformers.PersistentVolumeInformer
	Nodes          Nodes
	// Refusals gets each claim that a node gave no volume.
	Refusals *Refusals
	// Context ends what the plugin waits for; upstream's calls of plugins have none.
	Context context.Context
	Part    *status.Part
	Logger  *slog.Logger
}

// Volumes is the plugin. Run has to run beside the controllers.
type Volumes struct {
	o      Options
	wakeup timers.Signal // there is something for Run

	mu       sync.Mutex
	finalize map[string]bool // volumes whose finalizers are to change
}

var (
	_ volume.ProvisionableVolumePlugin = &Volumes{}
	_ volume.DeletableVolumePlugin     = &Volumes{}
	_ volume.ExpandableVolumePlugin    = &Volumes{}
)

// New makes the plugin, before the informers run.
func New(o Options) (*Volumes, error) {
	o.Logger = cmp.Or(o.Logger, slog.Default())
	v := &Volumes{o: o, wakeup: timers.NewSignal(), finalize: map[string]bool{}}
	return v, errors.Join(v.watchNodes(), v.watchVolumes())
}

// Init is called once for each controller that has the plugin.
func (v *Volumes) Init(volume.VolumeHost) error { return nil }

// GetPluginName is the provisioner's.
func (v *Volumes) GetPluginName() string { return Provisioner }

// CanSupport says whether a PersistentVolume is this package's.
func (v *Volumes) CanSupport(s *volume.Spec) bool {
	return s != nil && s.PersistentVolume != nil &&
		s.PersistentVolume.Annotations[storagehelpers.AnnDynamicallyProvisioned] == Provisioner &&
		pathOf(s.PersistentVolume) != ""
}

// NewProvisioner makes a volume for a claim.
func (v *Volumes) NewProvisioner(_ klog.Logger, o volume.VolumeOptions) (volume.Provisioner, error) {
	return provisioner{v, o}, nil
}

// NewDeleter removes a volume.
func (v *Volumes) NewDeleter(_ klog.Logger, s *volume.Spec) (volume.Deleter, error) {
	return &deleter{v: v, pv: s.PersistentVolume}, nil
}

// RequiresFSResize is false: a directory is as large as the disk, or as its quota, which the node raises when it is
// asked.
func (v *Volumes) RequiresFSResize() bool { return false }

// ExpandVolumeDevice lets a volume have more, if the node has that.
func (v *Volumes) ExpandVolumeDevice(s *volume.Spec, to, from resource.Quantity) (resource.Quantity, error) {
	return to, v.expand(s.PersistentVolume, to, from)
}

// The rest is what kubelets do with volumes, and theirs is the plugin for local ones.

var errKubelet = errors.New(Provisioner + " makes and removes volumes; kubelets mount them as local ones")

// GetVolumeName is not called by controllers.
func (v *Volumes) GetVolumeName(*volume.Spec) (string, error) { return "", errKubelet }

// RequiresRemount is false.
func (v *Volumes) RequiresRemount(*volume.Spec) bool { return false }

// NewMounter is not called by controllers.
func (v *Volumes) NewMounter(*volume.Spec, *corev1.Pod) (volume.Mounter, error) {
	return nil, errKubelet
}

// NewUnmounter is not called by controllers.
func (v *Volumes) NewUnmounter(string, types.UID) (volume.Unmounter, error) { return nil, errKubelet }

// ConstructVolumeSpec is not called by controllers.
func (v *Volumes) ConstructVolumeSpec(string, string) (volume.ReconstructedVolume, error) {
	return volume.ReconstructedVolume{}, errKubelet
}

// SupportsMountOption is false: a directory has none.
func (v *Volumes) SupportsMountOption() bool { return false }

// SupportsSELinuxContextMount is false, as for local volumes.
func (v *Volumes) SupportsSELinuxContextMount(*volume.Spec) (bool, error) { return false, nil }

// pathOf is the directory of a volume of this provisioner, Rancher's included; "" if it is none.
func pathOf(pv *corev1.PersistentVolume) string {
	switch {
	case pv.Spec.Local != nil:
		return pv.Spec.Local.Path
	case pv.Spec.HostPath != nil:
		return pv.Spec.HostPath.Path
	}
	return ""
}
