// SPDX-License-Identifier: Apache-2.0

// This file guards the one variable that upstream has for the writer of this node's CSINode object. Every CSI volume
// plugin that is initialized replaces the value: the kubelet's plugin, and the one in the attach-detach controller,
// which belongs to no node. Upstream never has both in one process. With the controller's value, the kubelet cannot
// register CSI drivers, and a kubelet that is just starting cannot write the object.

package kubecompat

import (
	"errors"
	"reflect"
	"sync"
	_ "unsafe" // for go:linkname

	"k8s.io/kubernetes/pkg/volume/csi"
	"k8s.io/kubernetes/pkg/volume/csi/nodeinfomanager"
)

// manager is upstream's variable for the writer of the CSINode object. No exported function returns it. A test fails
// when it is renamed or moved.
//
//go:linkname manager k8s.io/kubernetes/pkg/volume/csi.nim
var manager nodeinfomanager.Interface

// changeMu is held while a CSI volume plugin, the kubelet's or a controller's, is initialized, because that changes the
// variable.
var changeMu sync.Mutex

// RestoreAfter calls build, which may initialize a CSI volume plugin without a node, and then restores the kubelet's
// value.
func RestoreAfter(build func()) {
	changeMu.Lock()
	defer changeMu.Unlock()
	kept, handler := manager, *csi.PluginHandler
	build()
	// If no kubelet has started yet, the variable is reset to nil: otherwise it would keep the controller in memory for
	// good.
	manager, *csi.PluginHandler = kept, handler
}

// Init calls initialize, which initializes the kubelet's plugin. It waits while RestoreAfter builds: otherwise
// RestoreAfter would overwrite the value that initialize has set. initialize must not call RestoreAfter or Write.
func Init(initialize func() error) error {
	changeMu.Lock()
	defer changeMu.Unlock()
	return initialize()
}

// Write writes the CSINode object of this process' kubelet, as the kubelet itself does when it starts.
func Write() error {
	changeMu.Lock()
	m := manager
	changeMu.Unlock()
	if nodeOf(m) == "" {
		return errors.New("no kubelet has initialized its CSI plugin in this process")
	}
	return m.InitializeCSINodeWithAnnotation()
}

// nodeOf returns the node's name of a manager. It returns "" for the controllers' managers.
func nodeOf(m nodeinfomanager.Interface) string {
	v := reflect.ValueOf(m)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		return ""
	}
	return v.Elem().FieldByName("nodeName").String()
}
