// SPDX-License-Identifier: Apache-2.0

package cleanup

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/cni"
	"github.com/coracle-k8s/coracle/internal/config"
)

// Places outside the data directory. The agent gives the kubelet the system's folders where the data directory is the
// default one; a kubelet makes some of these folders wherever its own is, and containerd's CNI library the last.
const (
	podLogs       = "/var/log/pods"
	containerLogs = "/var/log/containers"
	kubeletDir    = "/var/lib/kubelet"
	cniCache      = "/var/lib/cni/results"
)

// kubeletRoots are the folders that may be the root of this node's kubelet.
func kubeletRoots(p config.Paths) []string {
	if p.DataDir == config.DefaultDataDir {
		return []string{p.KubeletRoot, kubeletDir}
	}
	return []string{p.KubeletRoot}
}

// removeAll removes folders and files with all they hold, unless something is mounted below: a volume's files are not
// ours to delete. A folder that is a mount point itself is emptied and stays.
func removeAll(paths ...string) error {
	var errs []error
	for _, p := range paths {
		if p == "" || !filepath.IsAbs(p) || filepath.Dir(p) == p {
			continue
		}
		points, err := mountsBelow(mountinfo, p)
		if err == nil && len(points) > 0 {
			err = fmt.Errorf("%s is still mounted, so %s was kept: unmount it and run this again", points[0], p)
		}
		if err == nil {
			err = os.RemoveAll(p)
		}
		if errors.Is(err, unix.EBUSY) {
			err = nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// removePodLogs removes the logs of the pods that the kubelet has folders of, and the links that pointed to them.
func removePodLogs(podsDir string) error {
	pods, err := os.ReadDir(podsDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	logs, err := os.ReadDir(podLogs)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	alone := !otherKubelet() // then the logs of pods that are long gone are ours too
	var errs []error
	for _, l := range logs { // named NAMESPACE_POD_UID
		uid := l.Name()[strings.LastIndexByte(l.Name(), '_')+1:]
		if alone || slices.ContainsFunc(pods, func(p fs.DirEntry) bool { return p.Name() == uid }) {
			errs = append(errs, os.RemoveAll(filepath.Join(podLogs, l.Name())))
		}
	}
	links, _ := os.ReadDir(containerLogs) // missing is fine
	for _, l := range links {
		p := filepath.Join(containerLogs, l.Name())
		if target, err := os.Readlink(p); err == nil && strings.HasPrefix(target, podLogs+"/") && missing(target) {
			errs = append(errs, os.Remove(p))
		}
	}
	removeEmpty(containerLogs, podLogs)
	return errors.Join(errs...)
}

// otherKubelet tells whether this host has, or had, a kubelet that is not ours: ours keeps nothing of this kind there.
func otherKubelet() bool {
	for _, name := range []string{"config.yaml", "kubeadm-flags.env", "pki", "kubeconfig"} {
		if !missing(filepath.Join(kubeletDir, name)) {
			return true
		}
	}
	return false
}

// removeKubeletDir removes the system's kubelet folder, or, where it is another kubelet's too, only what ours does there
// for pods that are gone.
func removeKubeletDir(p config.Paths) error {
	if !otherKubelet() {
		return removeAll(kubeletDir)
	}
	if slices.Contains(kubeletRoots(p), kubeletDir) {
		return fmt.Errorf("%s was kept, because it holds files of another kubelet; look at it and remove it yourself", kubeletDir)
	}
	return nil
}

// removeCNICache removes the results that containerd's CNI library keeps of our network.
func removeCNICache() error {
	files, _ := filepath.Glob(filepath.Join(cniCache, cni.NetworkName+"-*")) // the pattern is well-formed
	err := removeAll(files...)
	removeEmpty(cniCache, filepath.Dir(cniCache))
	return err
}

// removeEmpty removes the folders that are empty.
func removeEmpty(dirs ...string) {
	for _, d := range dirs {
		_ = os.Remove(d) // others' files keep it
	}
}

func missing(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// shimSocketDirs finds the folders of shims' sockets that lie outside the run directory, as they do when that one's
// name is too long for a socket. Each shim's bundle says where its socket is.
func shimSocketDirs(state string) []string {
	files, _ := filepath.Glob(filepath.Join(state, "io.containerd.runtime.v2.task", "*", "*", "bootstrap.json")) // the pattern is well-formed
	var dirs []string
	for _, f := range files {
		var bootstrap struct{ Address string }
		data, err := os.ReadFile(f)
		if err != nil || json.Unmarshal(data, &bootstrap) != nil {
			continue
		}
		dir := filepath.Dir(strings.TrimPrefix(bootstrap.Address, "unix://"))
		if strings.HasPrefix(dir, "/run/coracle-shims/") && !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}
