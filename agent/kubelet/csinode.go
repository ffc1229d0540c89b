// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"errors"
	"fmt"
	"time"

	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/volume"
	"k8s.io/kubernetes/pkg/volume/csi"

	"github.com/coracle-k8s/coracle/internal/kubecompat"
)

// csiPlugin has all of upstream's plugin for CSI volumes that the kubelet uses. A test compares the two.
type csiPlugin interface {
	volume.AttachableVolumePlugin
	volume.DeviceMountableVolumePlugin
	volume.BlockVolumePlugin
	volume.NodeExpandableVolumePlugin
}

// patientCSI is upstream's plugin with a host that does not give up. A kubelet that starts writes the node's CSINode
// object, and upstream's ends its process when that has failed six times in 140 s. On a board that is short of memory,
// or while the API server is unavailable for that long, ending the process makes everything worse (csi_plugin.go,
// initializeCSINode).
type patientCSI struct {
	csiPlugin
	returns bool // see Options
}

// replaceCSIPlugin replaces upstream's plugin by the patient one.
func replaceCSIPlugin(plugins []volume.VolumePlugin, returns bool) error {
	for i, p := range plugins {
		if p.GetPluginName() != csi.CSIPluginName {
			continue
		}
		whole, ok := p.(csiPlugin)
		if !ok {
			return fmt.Errorf("volume plugin %s lacks methods of upstream's CSI plugin", p.GetPluginName())
		}
		plugins[i] = patientCSI{whole, returns}
		return nil
	}
	return errors.New("there is no CSI volume plugin")
}

// Init calls upstream's, but never while a controller's plugin is initialized in this process.
func (p patientCSI) Init(host volume.VolumeHost) error {
	if kubelet, ok := host.(kubeletHost); ok {
		host = patientHost{kubeletHost: kubelet, returns: p.returns, write: kubecompat.Write, sleep: time.Sleep}
	}
	return kubecompat.Init(func() error { return p.csiPlugin.Init(host) })
}

// kubeletHost is the kubelet's interface for plugins.
type kubeletHost interface {
	volume.VolumeHost
	volume.KubeletVolumeHost
}

// patientHost replaces the kubelet for the CSI plugin. Upstream reports each failure to write the CSINode object to it
// before it counts the failure and tries again.
type patientHost struct {
	kubeletHost
	returns bool
	write   func() error // writes the object
	sleep   func(time.Duration)
}

// notYet is the text of upstream's report before its first try. It comes from the goroutine that starts the kubelet.
const notYet = "CSINode is not yet initialized"

// firstPause is short since the first try may come before the kubelet has registered the node.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 15 * time.Second
)

// SetKubeletError forwards a report, which makes the node not ready. After a failure it returns only when the object
// could be written: upstream's next try then finds it. A node that returns has the object from before, and its reports
// are not forwarded: if the first status came before the write, the node would be not ready, and tainted, until the
// second status ten seconds later.
func (h patientHost) SetKubeletError(err error) {
	if !h.returns {
		h.kubeletHost.SetKubeletError(err)
	}
	switch {
	case err == nil:
		return
	case err.Error() == notYet:
		go h.writeOnceRegistered()
		return
	}
	for wait := firstPause; ; wait = min(2*wait, lastPause) {
		h.sleep(wait)
		if err := h.write(); err == nil {
			return
		} else {
			klog.ErrorS(err, "The node's CSINode object cannot be written yet; a new node is not ready until it is")
		}
	}
}

// writeOnceRegistered writes the object as soon as the kubelet has registered its node. Upstream's tries begin before
// that, and are up to 250 ms apart.
func (h patientHost) writeOnceRegistered() {
	for range hastenTries {
		if _, err := h.GetNodeLabels(); err == nil {
			if h.write() == nil && !h.returns {
				h.kubeletHost.SetKubeletError(nil)
			}
			return
		}
		h.sleep(hastenPause)
	}
}
