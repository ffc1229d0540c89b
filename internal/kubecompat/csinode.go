// SPDX-License-Identifier: Apache-2.0

// This file guards upstream's one variable for what keeps this node's CSINode object. Every CSI volume plugin that
// is initialized replaces it: the kubelet's, and the one in the attach-detach controller, which knows no node. Upstream
// never has both in a process. With the controller's in it the kubelet cannot register CSI drivers, and a kubelet that
// is just starting cannot write the object.

package kubecompat

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

// changing is held while a CSI volume plugin is initialized, the kubelet's or a controller's, and so changes the
// variable.
var changing sync.Mutex

// RestoreAfter calls build, which may initialize a CSI volume plugin without a node, and gives the kubelet its own
// back.
func RestoreAfter(build func()) {
	changing.Lock()
	defer changing.Unlock()
	kept, handler := manager, *csi.PluginHandler
	build()
	// Back to nil as well, where no kubelet has started yet: it would keep the controller in memory for good.
	manager, *csi.PluginHandler = kept, handler
}

// Init calls initialize, which initializes the kubelet's plugin: while Keep builds, it waits, or what it put into the
// variable would be taken for the controller's. initialize must not call Keep or Write.
func Init(initialize func() error) error {
	changing.Lock()
	defer changing.Unlock()
	return initialize()
}

// Write writes the CSINode object of this process's kubelet, as the kubelet itself does when it starts.
func Write() error {
	changing.Lock()
	m := manager
	changing.Unlock()
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
