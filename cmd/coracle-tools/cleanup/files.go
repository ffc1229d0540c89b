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

// remover removes files and notes what it leaves.
type remover struct{ kept []Kept }

func (k *remover) keep(path, why string) { k.kept = append(k.kept, Kept{path, why}) }

// removeAll removes folders and files with all they hold, but no folder in which something is mounted: the files of
// that are not ours to remove. A path that is a mount point itself is emptied and stays.
func (k *remover) removeAll(paths ...string) error {
	var errs []error
	for _, p := range paths {
		if p == "" || !filepath.IsAbs(p) || filepath.Dir(p) == p {
			continue
		}
		points, err := mountsBelow(mountinfo, p)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, point := range points {
			k.keep(point, "something is mounted there that coracle did not mount; unmount it and remove the folder yourself")
		}
		if real, err := filepath.EvalSymlinks(p); len(points) > 0 && err == nil {
			p = real // as the mount points are written
		}
		errs = append(errs, removeAround(p, points))
	}
	return errors.Join(errs...)
}

// removeAround removes a path with all it holds, except for the given paths below it and the folders on the way there.
func removeAround(path string, except []string) error {
	onTheWay := func(p string) bool { return strings.HasPrefix(p, path+"/") }
	switch {
	case slices.Contains(except, path):
		return nil
	case !slices.ContainsFunc(except, onTheWay):
		if err := os.RemoveAll(path); !errors.Is(err, unix.EBUSY) {
			return err
		}
		return nil // a mount point, empty now
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return fmt.Errorf("list what to remove: %w", err)
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, removeAround(filepath.Join(path, e.Name()), except))
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
	alone := othersFile() == "" // then the logs of pods that are long gone are ours too
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

// othersFile is a file that shows that this host has, or had, a kubelet that is not ours: ours keeps nothing of that
// name in the system's kubelet folder. It is "" when there is none.
func othersFile() string {
	for _, name := range []string{"config.yaml", "kubeadm-flags.env", "pki", "kubeconfig"} {
		if p := filepath.Join(kubeletDir, name); !missing(p) {
			return p
		}
	}
	return ""
}

// removeKubeletDir removes the system's kubelet folder, or, where it is another kubelet's too, only the folders of the
// pods that ran under this coracle when it was stopped.
func removeKubeletDir(p config.Paths, keep *remover, uids []string) error {
	other := othersFile()
	if other == "" {
		return keep.removeAll(kubeletDir)
	}
	if !slices.Contains(kubeletRoots(p), kubeletDir) {
		return nil
	}
	keep.keep(kubeletDir, "it holds files of another kubelet ("+filepath.Base(other)+
		"); check it, and remove it yourself if nothing needs it")
	var errs []error
	for _, uid := range uids {
		errs = append(errs, keep.removeAll(filepath.Join(kubeletDir, "pods", uid)))
	}
	return errors.Join(errs...)
}

// podUIDs lists the pods whose containers have a bundle in containerd's state: the CRI plugin notes the pod there.
func podUIDs(state string) []string {
	var uids []string
	for _, f := range bundleFiles(state, "config.json") {
		var bundle struct{ Annotations map[string]string }
		data, err := os.ReadFile(f)
		if err != nil || json.Unmarshal(data, &bundle) != nil {
			continue
		}
		if uid := bundle.Annotations["io.kubernetes.cri.sandbox-uid"]; isUID(uid) && !slices.Contains(uids, uid) {
			uids = append(uids, uid)
		}
	}
	return uids
}

// isUID tells whether the text is safe as the name of a folder to remove: hexadecimal digits and dashes, as UIDs are.
func isUID(text string) bool {
	return len(text) >= 32 && strings.Trim(text, "0123456789abcdef-") == ""
}

// bundleFiles lists the files of that name in the folders that containerd keeps for containers which have not ended.
func bundleFiles(state, name string) []string {
	files, _ := filepath.Glob(filepath.Join(state, "io.containerd.runtime.v2.task", "*", "*", name)) // the pattern is well-formed
	return files
}

// removeCNICache removes the results that containerd's CNI library keeps of our network.
func removeCNICache(keep *remover) error {
	files, _ := filepath.Glob(filepath.Join(cniCache, cni.NetworkName+"-*")) // the pattern is well-formed
	err := keep.removeAll(files...)
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
	var dirs []string
	for _, f := range bundleFiles(state, "bootstrap.json") {
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
