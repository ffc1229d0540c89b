// SPDX-License-Identifier: Apache-2.0

// Package csinode guards upstream's one variable for what keeps this node's CSINode object. Every CSI volume plugin that
// is initialized replaces it: the kubelet's, and the one in the attach-detach controller, which knows no node. Upstream
// never has both in a process. With the controller's in it the kubelet cannot register CSI drivers, and a kubelet that
// is just starting cannot write the object.
package csinode

import (
	"errors"
	"reflect"
	"sync"
	_ "unsafe" // for go:linkname

	"k8s.io/kubernetes/pkg/volume/csi"
	"k8s.io/kubernetes/pkg/volume/csi/nodeinfomanager"
)

// manager is that variable. There is no exported way to it; a test fails when it moves.
//
//go:linkname manager k8s.io/kubernetes/pkg/volume/csi.nim
var manager nodeinfomanager.Interface

// building is held while a controller's plugin may be in the variable.
var building sync.Mutex

// Keep calls build, which may initialize a CSI volume plugin without a node, and gives the kubelet its own back.
func Keep(build func()) {
	building.Lock()
	defer building.Unlock()
	kept, handler := manager, *csi.PluginHandler
	build()
	if manager != kept && nodeOf(manager) == "" {
		// Back to nil as well, where no kubelet has started yet: it would keep the controller in memory for good.
		manager, *csi.PluginHandler = kept, handler
	}
}

// Write writes the CSINode object of this process's kubelet, as the kubelet itself does when it starts.
func Write() error {
	building.Lock()
	m := manager
	building.Unlock()
	if nodeOf(m) == "" {
		return errors.New("no kubelet has initialized its CSI plugin in this process")
	}
	return m.InitializeCSINodeWithAnnotation()
}

// nodeOf reads which node a manager is for; the controllers' are for none.
func nodeOf(m nodeinfomanager.Interface) string {
	v := reflect.ValueOf(m)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		return ""
	}
	return v.Elem().FieldByName("nodeName").String()
}
