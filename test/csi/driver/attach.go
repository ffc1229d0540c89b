// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// nodesDir is where a shared store keeps a file for each node that it knows.
const nodesDir = ".nodes"

// addNode has a shared store know a node.
func (s store) addNode(node string) error {
	if err := os.MkdirAll(filepath.Join(string(s), nodesDir), 0o700); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(string(s), nodesDir, node), nil, 0o600)
}

// knows says whether it does: fs.ErrNotExist is a node that it does not.
func (s store) knows(node string) error {
	if node != filepath.Base(node) {
		return fs.ErrNotExist
	}
	_, err := os.Stat(filepath.Join(string(s), nodesDir, node))
	return err
}

func (s store) attachment(id string) string { return s.path(id) + ".node" }

// attachedTo is the node that a volume is attached to, "" if there is none.
func (s store) attachedTo(id string) (string, error) {
	if !isID(id) {
		return "", nil
	}
	node, err := os.ReadFile(s.attachment(id))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(node), err
}

func (s store) attach(id, node string) error {
	part := s.attachment(id) + ".part"
	if err := os.WriteFile(part, []byte(node), 0o600); err != nil {
		return err
	}
	return os.Rename(part, s.attachment(id))
}

// detach detaches a volume, or finds it detached.
func (s store) detach(id string) error {
	if err := os.Remove(s.attachment(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// ControllerPublishVolume attaches a volume of a shared store to a node, if it is attached to no other one.
func (d *driver) ControllerPublishVolume(_ context.Context, r *csi.ControllerPublishVolumeRequest) (*csi.ControllerPublishVolumeResponse, error) {
	switch {
	case !d.shared:
		return nil, status.Error(codes.Unimplemented, "volumes are on their node")
	case r.GetVolumeId() == "" || r.GetNodeId() == "" || !mountable([]*csi.VolumeCapability{r.GetVolumeCapability()}):
		return nil, wrong("which volume, to which node, and as a directory?")
	}
	if _, err := d.volumes.get(r.GetVolumeId()); err != nil {
		return nil, failed(err)
	}
	if err := d.volumes.knows(r.GetNodeId()); err != nil {
		return nil, failed(err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	node, err := d.volumes.attachedTo(r.GetVolumeId())
	if err == nil && node != "" && node != r.GetNodeId() {
		return nil, status.Error(codes.FailedPrecondition, "the volume is attached to node "+node)
	}
	if err == nil {
		err = d.volumes.attach(r.GetVolumeId(), r.GetNodeId())
	}
	if err != nil {
		return nil, failed(err)
	}
	return &csi.ControllerPublishVolumeResponse{}, nil
}

// ControllerUnpublishVolume undoes ControllerPublishVolume.
func (d *driver) ControllerUnpublishVolume(_ context.Context, r *csi.ControllerUnpublishVolumeRequest) (*csi.ControllerUnpublishVolumeResponse, error) {
	switch {
	case !d.shared:
		return nil, status.Error(codes.Unimplemented, "volumes are on their node")
	case r.GetVolumeId() == "":
		return nil, wrong("which volume?")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	node, err := d.volumes.attachedTo(r.GetVolumeId())
	if err == nil && node != "" && (r.GetNodeId() == "" || node == r.GetNodeId()) {
		err = d.volumes.detach(r.GetVolumeId())
	}
	if err != nil {
		return nil, failed(err)
	}
	return &csi.ControllerUnpublishVolumeResponse{}, nil
}

// usable is an error for a volume of a shared store that is not attached to this node.
func (d *driver) usable(volume string) error {
	if !d.shared {
		return nil
	}
	if node, err := d.volumes.attachedTo(volume); err != nil || node != d.node {
		return status.Errorf(codes.FailedPrecondition, "the volume is attached to node %q, not to this one (%v)", node, err)
	}
	return nil
}
