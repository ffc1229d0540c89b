// SPDX-License-Identifier: Apache-2.0

// Command driver is a small CSI driver whose volumes are directories: of one node, or with -shared of a folder that all
// nodes see, as they see the disks of a storage network. There a volume has to be attached to a node before that one
// can use it, and is never attached to two. It shows that drivers work on coracle as they do elsewhere: the tests run
// it as a pod, beside upstream's external-provisioner and external-attacher. It is never part of a release.
//
// It needs no node-driver-registrar: it serves the kubelet's registration by itself. All that it knows is on the disk,
// so that it may end at any moment.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// name is the driver's, and the provisioner of its StorageClasses.
const name = "csi.coracle.test"

// topologyKey is the label by which volumes are tied to their node.
const topologyKey = name + "/node"

// driver is all three of CSI's services, and the kubelet's registration.
type driver struct {
	csi.UnimplementedIdentityServer
	csi.UnimplementedControllerServer
	csi.UnimplementedNodeServer
	registration.UnimplementedRegistrationServer

	node    string // the node's name
	volumes store
	socket  string // where the kubelet finds the driver
	shared  bool   // the volumes are all nodes'

	mu sync.Mutex // of attaching and detaching
}

func main() {
	node := flag.String("node", "", "the node's name")
	kubelet := flag.String("kubelet", "", "the kubelet's folder: the driver is registered there; empty registers nowhere")
	volumes := flag.String("volumes", "", "the folder for volumes")
	socket := flag.String("socket", "", "where to serve CSI")
	shared := flag.Bool("shared", false, "all nodes see the folder for volumes")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	d := &driver{node: *node, volumes: store(*volumes), socket: *socket, shared: *shared}
	if err := run(ctx, d, *kubelet); err != nil {
		fmt.Fprintln(os.Stderr, "driver:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, d *driver, kubelet string) error {
	if d.node == "" || d.volumes == "" || d.socket == "" {
		return errors.New("-node, -volumes and -socket have to be given")
	}
	if d.shared {
		if err := d.volumes.addNode(d.node); err != nil {
			return err
		}
	}
	s := grpc.NewServer()
	csi.RegisterIdentityServer(s, d)
	csi.RegisterControllerServer(s, d)
	csi.RegisterNodeServer(s, d)
	registration.RegisterRegistrationServer(s, d)
	sockets := []string{d.socket}
	if kubelet != "" { // last: the kubelet comes as soon as it sees this one
		sockets = append(sockets, filepath.Join(kubelet, "plugins_registry", name+"-reg.sock"))
	}
	ended := make(chan error, len(sockets)) // each server's end
	for _, path := range sockets {
		l, err := listen(path)
		if err != nil {
			return err
		}
		go func() { ended <- s.Serve(l) }()
		fmt.Println("serving", path)
	}
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	s.GracefulStop() // closing a socket removes it, and with it the registration
	return nil
}

// listen listens on a socket, which an earlier run may have left.
func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return net.Listen("unix", path)
}

// GetInfo answers the kubelet that found the socket.
func (d *driver) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{Type: registration.CSIPlugin, Name: name, Endpoint: d.socket, SupportedVersions: []string{"1.0.0"}}, nil
}

// NotifyRegistrationStatus is what the kubelet made of it.
func (d *driver) NotifyRegistrationStatus(_ context.Context, s *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	fmt.Println("registered:", s.PluginRegistered, s.Error)
	return &registration.RegistrationStatusResponse{}, nil
}

// GetPluginInfo names the driver.
func (d *driver) GetPluginInfo(context.Context, *csi.GetPluginInfoRequest) (*csi.GetPluginInfoResponse, error) {
	return &csi.GetPluginInfoResponse{Name: name, VendorVersion: "1"}, nil
}

// GetPluginCapabilities says that it makes volumes, and on which node one is.
func (d *driver) GetPluginCapabilities(context.Context, *csi.GetPluginCapabilitiesRequest) (*csi.GetPluginCapabilitiesResponse, error) {
	out := &csi.GetPluginCapabilitiesResponse{}
	all := []csi.PluginCapability_Service_Type{csi.PluginCapability_Service_CONTROLLER_SERVICE}
	if !d.shared {
		all = append(all, csi.PluginCapability_Service_VOLUME_ACCESSIBILITY_CONSTRAINTS)
	}
	for _, t := range all {
		out.Capabilities = append(out.Capabilities, &csi.PluginCapability{
			Type: &csi.PluginCapability_Service_{Service: &csi.PluginCapability_Service{Type: t}},
		})
	}
	return out, nil
}

// Probe always works.
func (d *driver) Probe(context.Context, *csi.ProbeRequest) (*csi.ProbeResponse, error) {
	return &csi.ProbeResponse{}, nil
}
