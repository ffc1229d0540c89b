// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"reflect"
	_ "unsafe" // for go:linkname

	"k8s.io/kubernetes/pkg/volume/csi"
	"k8s.io/kubernetes/pkg/volume/csi/nodeinfomanager"
)

// csiNodeInfo is upstream's one variable for what keeps this node's CSINode object. Every CSI volume plugin that is
// initialized replaces it: the kubelet's, and the one in the attach-detach controller, which knows no node. Upstream
// never has both in a process. With the controller's in it the kubelet cannot register CSI drivers, and a kubelet that
// is just starting ends the process after 140 s of trying. There is no exported way to it; a test fails when it moves.
//
//go:linkname csiNodeInfo k8s.io/kubernetes/pkg/volume/csi.nim
var csiNodeInfo nodeinfomanager.Interface

// keepCSINodeInfo calls build, which may initialize a CSI volume plugin, and gives the kubelet its own back.
func keepCSINodeInfo(build func()) {
	kept, handler := csiNodeInfo, *csi.PluginHandler
	build()
	if csiNodeInfo != kept && nodeOf(csiNodeInfo) == "" {
		// Back to nil as well, where no kubelet has started yet: it would keep the controller in memory for good.
		csiNodeInfo, *csi.PluginHandler = kept, handler
	}
}

// nodeOf reads which node a manager is for; the controllers' are for none.
func nodeOf(m nodeinfomanager.Interface) string {
	v := reflect.ValueOf(m)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		return ""
	}
	return v.Elem().FieldByName("nodeName").String()
}
