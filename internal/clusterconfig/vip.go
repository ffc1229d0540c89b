// SPDX-License-Identifier: Apache-2.0

package clusterconfig

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

const (
	// VIPConfigMap is the ConfigMap in kube-system with the cluster's virtual addresses. It is authoritative.
	VIPConfigMap = "vip.coracle"
	// VIPData is the key in that ConfigMap. Its value is the addresses, separated by commas, or empty without any.
	VIPData = "addresses"
	// vipFile is the name of each server's copy, in the server's folder.
	vipFile = "vip.json"
)

type keptVIPs struct {
	Addresses []netip.Addr `json:"addresses"`
}

// ReadVIPs reads the copy of the cluster's virtual addresses in a server's folder. known is false until the server has
// read them from the cluster, or has received them when it joined.
func ReadVIPs(serverDir string) (addresses []netip.Addr, known bool, err error) {
	path := filepath.Join(serverDir, vipFile)
	var kept keptVIPs
	if known, err = atomicfile.ReadJSON(path, &kept); err != nil {
		return nil, false,
			fmt.Errorf("reading the cluster's virtual addresses: %s: %w. Nothing was changed: remove the file, and it is made again", path,
				err)
	}
	return kept.Addresses, known, nil
}

// RemoveVIPs removes the copy, because the cluster has no setting for virtual addresses any more.
func RemoveVIPs(serverDir string) error {
	err := os.Remove(filepath.Join(serverDir, vipFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// WriteVIPs writes the copy in a server's folder.
func WriteVIPs(serverDir string, addresses []netip.Addr) error {
	return atomicfile.WriteJSON(filepath.Join(serverDir, vipFile), keptVIPs{Addresses: addresses}, 0o600)
}
