// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// wrong is an error of the caller's.
func wrong(what string) error { return status.Error(codes.InvalidArgument, what) }

// failed is an error of the node's.
func failed(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return status.Error(codes.NotFound, err.Error())
	}
	return status.Error(codes.Internal, err.Error())
}

// ControllerGetCapabilities says what the driver does with volumes as such.
func (d *driver) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	out := &csi.ControllerGetCapabilitiesResponse{}
	all := []csi.ControllerServiceCapability_RPC_Type{
		csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME, csi.ControllerServiceCapability_RPC_GET_CAPACITY,
	}
	if d.shared {
		all = append(all, csi.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME)
	}
	for _, t := range all {
		out.Capabilities = append(out.Capabilities, &csi.ControllerServiceCapability{
			Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: t}},
		})
	}
	return out, nil
}

// here is where the node's volumes can be used; nil is everywhere.
func (d *driver) here() *csi.Topology {
	if d.shared {
		return nil
	}
	return &csi.Topology{Segments: map[string]string{topologyKey: d.node}}
}

// reaches says whether a volume on this node is what is asked for.
func (d *driver) reaches(r *csi.TopologyRequirement) bool {
	for _, t := range r.GetRequisite() {
		if t.GetSegments()[topologyKey] == d.node {
			return true
		}
	}
	return d.shared || len(r.GetRequisite()) == 0
}

// mountable says whether a directory can be all that is asked for.
func mountable(all []*csi.VolumeCapability) bool {
	for _, c := range all {
		if c.GetMount() == nil {
			return false
		}
	}
	return len(all) > 0
}

func (d *driver) free() (int64, error) {
	var s unix.Statfs_t
	if err := os.MkdirAll(string(d.volumes), 0o700); err != nil {
		return 0, err
	}
	if err := unix.Statfs(string(d.volumes), &s); err != nil {
		return 0, err
	}
	return int64(s.Bavail) * s.Bsize, nil
}

// CreateVolume makes a directory, or finds it made.
func (d *driver) CreateVolume(_ context.Context, r *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	bytes, limit := r.GetCapacityRange().GetRequiredBytes(), r.GetCapacityRange().GetLimitBytes()
	switch {
	case r.GetName() == "":
		return nil, wrong("a volume needs a name")
	case !mountable(r.GetVolumeCapabilities()):
		return nil, wrong("volumes are directories")
	case r.GetVolumeContentSource() != nil:
		return nil, wrong("volumes begin empty")
	case limit > 0 && bytes > limit:
		return nil, status.Error(codes.OutOfRange, "more bytes are required than are allowed")
	case !d.reaches(r.GetAccessibilityRequirements()):
		return nil, status.Error(codes.ResourceExhausted, "volumes are on node "+d.node)
	}
	v := volume{Name: r.GetName(), Bytes: bytes}
	switch have, err := d.volumes.get(id(v.Name)); {
	case err == nil && have != v:
		return nil, status.Error(codes.AlreadyExists, "there is a volume of that name and of another size")
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, failed(err)
	case err != nil:
		free, err := d.free()
		if err != nil {
			return nil, failed(err)
		}
		if bytes > free {
			return nil, status.Error(codes.OutOfRange, "the disk has no room for it")
		}
		if err := d.volumes.make(v); err != nil {
			return nil, failed(err)
		}
	}
	out := &csi.Volume{VolumeId: id(v.Name), CapacityBytes: v.Bytes}
	if here := d.here(); here != nil {
		out.AccessibleTopology = append(out.AccessibleTopology, here)
	}
	return &csi.CreateVolumeResponse{Volume: out}, nil
}

// DeleteVolume removes a directory, or finds none.
func (d *driver) DeleteVolume(_ context.Context, r *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	if r.GetVolumeId() == "" {
		return nil, wrong("which volume?")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if node, err := d.volumes.attachedTo(r.GetVolumeId()); err != nil || node != "" {
		return nil, status.Errorf(codes.FailedPrecondition, "the volume is attached to node %q (%v)", node, err)
	}
	if err := d.volumes.remove(r.GetVolumeId()); err != nil {
		return nil, failed(err)
	}
	return &csi.DeleteVolumeResponse{}, nil
}

// ValidateVolumeCapabilities says whether a volume can be used like that.
func (d *driver) ValidateVolumeCapabilities(_ context.Context, r *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if r.GetVolumeId() == "" || len(r.GetVolumeCapabilities()) == 0 {
		return nil, wrong("which volume, and for what?")
	}
	if _, err := d.volumes.get(r.GetVolumeId()); err != nil {
		return nil, failed(err)
	}
	if !mountable(r.GetVolumeCapabilities()) {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: "volumes are directories"}, nil
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext: r.GetVolumeContext(), VolumeCapabilities: r.GetVolumeCapabilities(), Parameters: r.GetParameters(),
	}}, nil
}

// GetCapacity is what the disk has left.
func (d *driver) GetCapacity(_ context.Context, r *csi.GetCapacityRequest) (*csi.GetCapacityResponse, error) {
	if t := r.GetAccessibleTopology(); t != nil && !d.shared && t.GetSegments()[topologyKey] != d.node {
		return &csi.GetCapacityResponse{}, nil
	}
	free, err := d.free()
	return &csi.GetCapacityResponse{AvailableCapacity: free}, failed(err)
}
