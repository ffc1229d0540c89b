// SPDX-License-Identifier: Apache-2.0

package localpath

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kubernetes/pkg/volume"
	"k8s.io/utils/ptr"

	"github.com/coracle-k8s/coracle/localvolume"
)

// folderParameter of a StorageClass selects one of the nodes' folders, as with Rancher's provisioner.
const folderParameter = "nodePath"

type provisioner struct {
	v *Volumes
	o volume.VolumeOptions
}

// Provision makes the directory and returns the PersistentVolume for it. Its error becomes an event of the claim.
func (p provisioner) Provision(node *corev1.Node, _ []corev1.TopologySelectorTerm) (*corev1.PersistentVolume, error) {
	if err := p.check(node); err != nil {
		return nil, err
	}
	host := node.Labels[corev1.LabelHostname]
	if host == "" {
		return nil, fmt.Errorf("node %s has no label %s, by which its volumes are tied to it", node.Name, corev1.LabelHostname)
	}
	claim := p.o.PVC
	asked := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	name := localvolume.Name(p.o.PVName, claim.Namespace, claim.Name)
	a, err := p.v.o.Nodes.AskVolumes(p.v.o.Context, node.Name, localvolume.Request{
		Op: localvolume.Make, Folder: p.o.Parameters[folderParameter], Name: name, Bytes: asked.Value(),
	})
	if err != nil {
		if p.v.o.Context.Err() == nil { // otherwise the term has ended, and the node has refused nothing
			p.v.o.Refusals.add(claim.UID, node.Name) // before the error makes the scheduler choose again
		}
		return nil, fmt.Errorf("node %s: %w", node.Name, err)
	}
	if _, got, ok := localvolume.Split(a.Path); !ok || got != name {
		return nil, fmt.Errorf("node %s answers with the path %q, which is not the volume's", node.Name, a.Path)
	}
	annotations := map[string]string{nodeAnnotation: node.Name}
	if a.Quota {
		annotations[QuotaAnnotation] = projectQuota
	}
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: p.o.PVName, Annotations: annotations},
		Spec: corev1.PersistentVolumeSpec{
			PersistentVolumeReclaimPolicy: p.o.PersistentVolumeReclaimPolicy,
			AccessModes:                   claim.Spec.AccessModes,
			VolumeMode:                    ptr.To(corev1.PersistentVolumeFilesystem),
			Capacity:                      corev1.ResourceList{corev1.ResourceStorage: asked},
			PersistentVolumeSource:        corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: a.Path}},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchExpressions: []corev1.NodeSelectorRequirement{{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn,
					Values: []string{host}}},
			}}}},
		},
	}, nil
}

// check returns an error for requirements that a directory on one node cannot meet.
func (p provisioner) check(node *corev1.Node) error {
	claim := p.o.PVC.Spec
	for _, m := range claim.AccessModes {
		if m != corev1.ReadWriteOnce && m != corev1.ReadWriteOncePod {
			return fmt.Errorf("a local volume is on one node: it has the access modes ReadWriteOnce and ReadWriteOncePod, and not %s", m)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(p.o.Parameters)) {
		if k != folderParameter {
			return fmt.Errorf("the StorageClass has the parameter %s; coracle's local volumes know %s alone", k, folderParameter)
		}
	}
	folder := p.o.Parameters[folderParameter]
	switch {
	case ptr.Deref(claim.VolumeMode, corev1.PersistentVolumeFilesystem) != corev1.PersistentVolumeFilesystem:
		return errors.New("a local volume is a directory: volumeMode Block is not supported")
	case claim.Selector != nil:
		return errors.New("a volume that is made for the claim has no labels to select it by: leave out spec.selector")
	case folder != "" && (!filepath.IsAbs(folder) || filepath.Clean(folder) != folder):
		return fmt.Errorf("the StorageClass has the parameter %s=%q, which is not an absolute path", folderParameter, folder)
	case node == nil:
		return errors.New("a local volume is made where its pod runs: the StorageClass needs volumeBindingMode WaitForFirstConsumer")
	}
	return nil
}

// expand checks whether a node has enough space for a volume's growth. It raises the volume's quota, if there is one.
func (v *Volumes) expand(pv *corev1.PersistentVolume, to, from resource.Quantity) error {
	folder, name, err := parse(pv)
	if err != nil {
		return err
	}
	node, err := v.nodeOf(pv)
	if err != nil {
		return err
	}
	a, err := v.o.Nodes.AskVolumes(v.o.Context, node, localvolume.Request{Op: localvolume.Space, Folder: folder})
	if err != nil {
		return fmt.Errorf("node %s: %w", node, err)
	}
	if more := to.Value() - from.Value(); more > a.Free {
		return fmt.Errorf("node %s has %s left in %s, and the volume is to grow by %s", node, localvolume.Size(a.Free), folder,
			localvolume.Size(more))
	}
	if pv.Annotations[QuotaAnnotation] == "" {
		return nil
	}
	if _, err := v.o.Nodes.AskVolumes(v.o.Context, node, localvolume.Request{Op: localvolume.Grow, Folder: folder, Name: name,
		Bytes: to.Value()}); err != nil {
		return fmt.Errorf("node %s: %w", node, err)
	}
	return nil
}

// parse returns a volume's folder and the name of its directory in it. It returns an error for a volume that coracle
// did not make: a user who may write PersistentVolumes may write any path, and that directory would not belong to this
// package.
func parse(pv *corev1.PersistentVolume) (folder, name string, err error) {
	folder, name, ok := localvolume.Split(pathOf(pv))
	if !ok || !strings.HasPrefix(name, pv.Name+"_") {
		return "", "", fmt.Errorf("the path %q is not one that coracle gives to a volume of that name; nothing there is touched",
			pathOf(pv))
	}
	return folder, name, nil
}
