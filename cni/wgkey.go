// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"k8s.io/klog/v2"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
)

// wireGuardKeyFile has the node's private key in the format of wg(8). The key never leaves the node.
const wireGuardKeyFile = "wireguard.key"

// wireGuardKey returns the node's key, which it makes at the first start. It replaces a file without a valid key: other
// nodes then get the new public key.
func wireGuardKey(dir string, log klog.Logger) (key wgtypes.Key, err error) {
	path := filepath.Join(dir, wireGuardKeyFile)
	data, err := os.ReadFile(path)
	if err == nil {
		if key, err = wgtypes.ParseKey(strings.TrimSpace(string(data))); err == nil {
			return key, nil
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return key, fmt.Errorf("reading the node's WireGuard key: %w", err)
	}
	log.Info("Making a WireGuard key for this node", "file", path, "publishedAs", clusterconfig.WireGuardAnnotation)
	if key, err = wgtypes.GeneratePrivateKey(); err != nil {
		return key, fmt.Errorf("making the node's WireGuard key: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return key, fmt.Errorf("making the folder of the node's WireGuard key: %w", err)
	}
	if err := atomicfile.Write(path, []byte(key.String()+"\n"), 0o600); err != nil {
		return key, fmt.Errorf("writing the node's WireGuard key: %w", err)
	}
	return key, nil
}
