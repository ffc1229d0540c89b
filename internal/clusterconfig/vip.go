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
	// VIPConfigMap, in kube-system, has the cluster's virtual addresses: what is there counts.
	VIPConfigMap = "vip.coracle"
	// VIPData is its key; the value has the addresses with commas in between, and is empty when the cluster has none.
	VIPData = "addresses"
	// vipFile is each server's copy, in its folder.
	vipFile = "vip.json"
)

type keptVIPs struct {
	Addresses []netip.Addr `json:"addresses"`
}

// ReadVIPs reads what a server's folder keeps of the cluster's virtual addresses. It is not known before the server has
// seen the cluster's, or has received it when it joined.
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

// RemoveVIPs removes what is kept: the cluster says nothing of virtual addresses any more.
func RemoveVIPs(serverDir string) error {
	err := os.Remove(filepath.Join(serverDir, vipFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// WriteVIPs keeps them there.
func WriteVIPs(serverDir string, addresses []netip.Addr) error {
	return atomicfile.WriteJSON(filepath.Join(serverDir, vipFile), keptVIPs{Addresses: addresses}, 0o600)
}
