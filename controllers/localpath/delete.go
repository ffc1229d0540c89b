// SPDX-License-Identifier: Apache-2.0

package localpath

import (
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	volumeerrors "k8s.io/cloud-provider/volume/errors"
	"k8s.io/kubernetes/pkg/volume"

	"github.com/coracle-k8s/coracle/localvolume"
)

type deleter struct {
	v  *Volumes
	pv *corev1.PersistentVolume
	volume.MetricsNil
}

// GetPath is required by the interface, and is not used.
func (d *deleter) GetPath() string { return "" }

// Delete removes the directory. While the node has no connection the PersistentVolume stays, and upstream's controller
// tries again. For a node that is no longer in the cluster the directory is recorded, and removed when that node comes
// back.
func (d *deleter) Delete() error {
	folder, name, err := parse(d.pv)
	if err != nil {
		return err
	}
	if err := d.v.checkUnwanted(d.pv); err != nil {
		return err
	}
	node, err := d.v.nodeOf(d.pv)
	if err != nil {
		return err
	}
	there, err := d.v.nodeExists(node)
	if err != nil {
		return err
	}
	if !there {
		return d.v.recordLeftover(node, pathOf(d.pv))
	}
	_, err = d.v.o.Nodes.AskVolumes(d.v.o.Context, node, localvolume.Request{Op: localvolume.Remove, Folder: folder, Name: name})
	if errors.Is(err, ErrAway) {
		return volumeerrors.NewDeletedVolumeInUseError(fmt.Sprintf("node %s is away; its directory %s is removed when it is back", node,
			pathOf(d.pv)))
	}
	if err != nil {
		return fmt.Errorf("node %s: %w", node, err)
	}
	return nil
}

// checkUnwanted returns an error if a volume must stay after all. Upstream's controller passes the volume from its
// cache, which may be older than the claim's deletion. A user may have changed the policy to Retain and then deleted
// the claim, and would lose the data. The request also keeps a server that does not know yet that it lost leadership
// from removing anything, since it gets no answer.
func (v *Volumes) checkUnwanted(pv *corev1.PersistentVolume) error {
	now, err := v.o.Client.CoreV1().PersistentVolumes().Get(v.o.Context, pv.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err): // upstream's controller has read it a moment ago
		return nil
	case err != nil:
		return fmt.Errorf("reading PersistentVolume %s once more before its directory is removed: %w", pv.Name, err)
	case now.UID != pv.UID, now.Spec.PersistentVolumeReclaimPolicy != corev1.PersistentVolumeReclaimDelete:
		// this error gives an event, and not the phase Failed
		return volumeerrors.NewDeletedVolumeInUseError(fmt.Sprintf("PersistentVolume %s has changed: its directory stays for now", pv.Name))
	}
	return nil
}

// nodeOf returns the name of a volume's node.
func (v *Volumes) nodeOf(pv *corev1.PersistentVolume) (string, error) {
	if n := pv.Annotations[nodeAnnotation]; n != "" {
		return n, nil
	}
	host := hostOf(pv)
	if host == "" {
		return "", fmt.Errorf("PersistentVolume %s does not say which node it is on", pv.Name)
	}
	nodes, err := v.o.NodeInformer.Lister().List(labels.SelectorFromSet(labels.Set{corev1.LabelHostname: host}))
	if err == nil && len(nodes) == 1 {
		return nodes[0].Name, nil
	}
	return host, err // most nodes have their host name as name
}

// hostOf returns the host name in a volume's node affinity.
func hostOf(pv *corev1.PersistentVolume) string {
	if pv.Spec.NodeAffinity == nil || pv.Spec.NodeAffinity.Required == nil {
		return ""
	}
	for _, t := range pv.Spec.NodeAffinity.Required.NodeSelectorTerms {
		for _, e := range t.MatchExpressions {
			if e.Key == corev1.LabelHostname && e.Operator == corev1.NodeSelectorOpIn && len(e.Values) == 1 {
				return e.Values[0]
			}
		}
	}
	return ""
}

// nodeExists asks the API server when the cache does not have a node, since the consequence of its absence is final.
func (v *Volumes) nodeExists(name string) (bool, error) {
	if _, err := v.o.NodeInformer.Lister().Get(name); err == nil {
		return true, nil
	}
	_, err := v.o.Client.CoreV1().Nodes().Get(v.o.Context, name, metav1.GetOptions{})
	switch {
	case err == nil:
		return true, nil
	case apierrors.IsNotFound(err):
		return false, nil
	}
	return false, fmt.Errorf("looking for node %s: %w", name, err)
}
