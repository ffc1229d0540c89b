// SPDX-License-Identifier: Apache-2.0

// Package localpath makes volumes for claims of StorageClasses with the provisioner rancher.io/local-path: a directory
// on the node where their pod runs. It removes the directory when the claim is deleted.
//
// It is a volume plugin of upstream's PersistentVolume controller and of its controller for expansion. It thus needs no
// cache and no lease of its own. Its loops are in Run, which waits for nodes that come back, for volumes whose policy
// changes to Retain, and for claims of pods that name their node themselves. The nodes do the work (localvolume) and
// check every path themselves. The package never removes a volume that another provisioner may have made: the
// provisioner's annotation, the name and the folder have to match.
//
// Its goroutines: volumes left on nodes that were gone, once a minute while there is one; claims of pods that name
// their node, asleep; once a second while one cannot be written.
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
	storageinformers "k8s.io/client-go/informers/storage/v1"
	"k8s.io/client-go/kubernetes"
	storagehelpers "k8s.io/component-helpers/storage/volume"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/volume"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
	"github.com/coracle-k8s/coracle/localvolume"
)

// Provisioner is the provisioner's name in StorageClasses. It is Rancher's, so that manifests for k3s work.
const Provisioner = "rancher.io/local-path"

// nodeAnnotation names a volume's node. Rancher's provisioner writes the same annotation.
const nodeAnnotation = "local.path.provisioner/selected-node"

// QuotaAnnotation is on a volume whose size is enforced. "project" is for a project quota of the node's filesystem.
const (
	QuotaAnnotation = "coracle.dev/quota"
	projectQuota    = "project"
)

// Nodes sends requests to nodes.
type Nodes interface {
	// AskVolumes sends a request to a node. Its error wraps ErrAway if the node has no connection to this server.
	AskVolumes(ctx context.Context, node string, r localvolume.Request) (localvolume.Response, error)
}

// ErrAway is the error for a node without a connection to this server.
var ErrAway = errors.New("the node has no connection to the server that leads")

// All fields of Options are required, except Refusals, Part and Logger.
type Options struct {
	// Client has the permissions of an administrator.
	Client kubernetes.Interface
	// The informers are shared. Other parts run them.
	NodeInformer   coreinformers.NodeInformer
	VolumeInformer coreinformers.PersistentVolumeInformer
	ClaimInformer  coreinformers.PersistentVolumeClaimInformer
	PodInformer    coreinformers.PodInformer
	ClassInformer  storageinformers.StorageClassInformer
	Nodes          Nodes
	// Refusals records each claim for which a node made no volume.
	Refusals *Refusals
	// Context ends the plugin's requests, since upstream's calls of plugins have no context.
	Context context.Context
	Part    *status.Part
	Logger  *slog.Logger
}

// Volumes is the volume plugin for local volumes. Run has to run while the controllers run.
type Volumes struct {
	o         Options
	wakeup    timers.Signal // Run has work
	nodeNames timers.Signal // chooseNodes has work

	mu       sync.Mutex
	finalize map[string]bool // volumes whose finalizers have to change
}

var (
	_ volume.ProvisionableVolumePlugin = &Volumes{}
	_ volume.DeletableVolumePlugin     = &Volumes{}
	_ volume.ExpandableVolumePlugin    = &Volumes{}
)

// New makes the plugin. It must be called before the informers run.
func New(o Options) (*Volumes, error) {
	o.Logger = cmp.Or(o.Logger, slog.Default())
	v := &Volumes{o: o, wakeup: timers.NewSignal(), nodeNames: timers.NewSignal(), finalize: map[string]bool{}}
	return v, errors.Join(v.watchNodes(), v.watchVolumes(), v.watchNodeNames())
}

// Init is called once for each controller that has the plugin.
func (v *Volumes) Init(volume.VolumeHost) error { return nil }

// GetPluginName returns the provisioner's name.
func (v *Volumes) GetPluginName() string { return Provisioner }

// CanSupport reports whether a PersistentVolume is of this provisioner, which may be Rancher's.
func (v *Volumes) CanSupport(s *volume.Spec) bool {
	return s != nil && s.PersistentVolume != nil &&
		s.PersistentVolume.Annotations[storagehelpers.AnnDynamicallyProvisioned] == Provisioner &&
		pathOf(s.PersistentVolume) != ""
}

// NewProvisioner returns a provisioner of a volume for a claim.
func (v *Volumes) NewProvisioner(_ klog.Logger, o volume.VolumeOptions) (volume.Provisioner, error) {
	return provisioner{v, o}, nil
}

// NewDeleter returns a deleter of a volume.
func (v *Volumes) NewDeleter(_ klog.Logger, s *volume.Spec) (volume.Deleter, error) {
	return &deleter{v: v, pv: s.PersistentVolume}, nil
}

// RequiresFSResize returns false: a directory is as large as the disk, or as its quota, which the node raises on
// request.
func (v *Volumes) RequiresFSResize() bool { return false }

// ExpandVolumeDevice expands a volume, if the node has enough free space.
func (v *Volumes) ExpandVolumeDevice(s *volume.Spec, to, from resource.Quantity) (resource.Quantity, error) {
	return to, v.expand(s.PersistentVolume, to, from)
}

// The remaining methods are for kubelets, which use the plugin for local volumes instead.

var errKubelet = errors.New(Provisioner + " makes and removes volumes; kubelets mount them as local ones")

// GetVolumeName is not called by controllers.
func (v *Volumes) GetVolumeName(*volume.Spec) (string, error) { return "", errKubelet }

// RequiresRemount returns false.
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

// SupportsMountOption returns false: a directory has no mount options.
func (v *Volumes) SupportsMountOption() bool { return false }

// SupportsSELinuxContextMount returns false, as for local volumes.
func (v *Volumes) SupportsSELinuxContextMount(*volume.Spec) (bool, error) { return false, nil }

// pathOf returns the directory of a volume of this provisioner, or of Rancher's. It returns "" for other volumes.
func pathOf(pv *corev1.PersistentVolume) string {
	switch {
	case pv.Spec.Local != nil:
		return pv.Spec.Local.Path
	case pv.Spec.HostPath != nil:
		return pv.Spec.HostPath.Path
	}
	return ""
}
