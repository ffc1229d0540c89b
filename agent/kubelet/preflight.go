// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
)

// maxSocketPath is the longest path of a unix socket, without the closing zero (unix(7)).
const maxSocketPath = 107

// preflight finds problems for which upstream's kubelet would later exit the whole process.
func preflight(s *options.KubeletServer) error {
	var errs []error
	if err := portFree(s.Address, s.Port); err != nil {
		errs = append(errs, err)
	}
	if longest := filepath.Join(s.RootDirectory, "pod-resources", "kubelet.sock"); len(longest) > maxSocketPath {
		errs = append(errs, fmt.Errorf("kubelet: its folder %s is too deep: sockets below it would have names of %d characters, the "+
			"kernel allows %d; choose a shorter data directory",
			s.RootDirectory, len(longest), maxSocketPath))
	}
	for what, path := range map[string]string{
		"its credentials": s.KubeConfig, "its serving certificate": s.TLSCertFile, "its serving key": s.TLSPrivateKeyFile,
		"the certificate authority for its callers": s.Authentication.X509.ClientCAFile,
	} {
		if err := readable(path); err != nil {
			errs = append(errs, fmt.Errorf("kubelet: %s cannot be read: %w", what, err))
		}
	}
	if s.StaticPodPath != "" {
		if err := os.MkdirAll(s.StaticPodPath, 0o755); err != nil {
			errs = append(errs, fmt.Errorf("kubelet: make the folder of static pods: %w", err))
		}
	}
	if err := os.MkdirAll(s.RootDirectory, 0o750); err != nil {
		errs = append(errs, fmt.Errorf("kubelet: make its folder: %w", err))
	}
	return errors.Join(errs...)
}

func portFree(address string, port int32) error {
	l, err := net.Listen("tcp", net.JoinHostPort(address, strconv.Itoa(int(port))))
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("kubelet: port %d is taken by another program: stop it (another Kubernetes node on this machine?), or choose "+
			"another port with --kubelet-arg=port=N", port)
	}
	if err != nil {
		return fmt.Errorf("kubelet: cannot listen on %s port %d: %w", address, port, err)
	}
	return l.Close()
}

func readable(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return f.Close()
}
