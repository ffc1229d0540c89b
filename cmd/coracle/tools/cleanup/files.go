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
	"github.com/coracle-k8s/coracle/internal/convert"
	"github.com/coracle-k8s/coracle/internal/podkill"
)

// Paths outside the data directory. With the default data directory, the agent gives the kubelet the system's folders.
// With any other, a kubelet still makes some of these folders. containerd's CNI library makes the last one.
const (
	podLogs       = "/var/log/pods"
	containerLogs = "/var/log/containers"
	kubeletDir    = "/var/lib/kubelet"
	cniCache      = "/var/lib/cni/results"
)

// kubeletRoots returns the folders that may be the root of this node's kubelet.
func kubeletRoots(p config.Paths) []string {
	if p.DataDir == config.DefaultDataDir {
		return []string{p.KubeletRoot, kubeletDir}
	}
	return []string{p.KubeletRoot}
}

// remover removes files and notes which paths it keeps.
type remover struct{ keptPaths []Kept }

func (k *remover) recordKept(path, why string) { k.keptPaths = append(k.keptPaths, Kept{path, why}) }

// removeAll removes folders and files with their content, except folders in which something is mounted: mounted files
// are not coracle's to remove. A path that is itself a mount point is emptied and stays.
func (k *remover) removeAll(paths ...string) error {
	return errors.Join(convert.Slice(paths, func(p string) error { return k.removeBut(p, "") })...)
}

// removeBut is removeAll for one path, except the folder in it with this name.
func (k *remover) removeBut(p, name string) error {
	if p == "" || !filepath.IsAbs(p) || filepath.Dir(p) == p {
		return nil
	}
	except, err := podkill.MountsBelow(p)
	if err != nil {
		return err
	}
	for _, point := range except {
		k.recordKept(point, "something is mounted there that coracle did not mount; unmount it and remove the folder yourself")
	}
	if real, err := filepath.EvalSymlinks(p); len(except) > 0 && err == nil {
		p = real // the form in which the kernel writes mount points
	}
	if folder := filepath.Join(p, name); name != "" && !doesNotExist(folder) {
		except = append(except, folder)
	}
	return removeAround(p, except)
}

// removeAround removes a path with its content, except the given paths below it and the folders that lead to them.
func removeAround(path string, except []string) error {
	onTheWay := func(p string) bool { return strings.HasPrefix(p, path+"/") }
	switch {
	case slices.Contains(except, path):
		return nil
	case !slices.ContainsFunc(except, onTheWay):
		if err := os.RemoveAll(path); !errors.Is(err, unix.EBUSY) {
			return err
		}
		return nil // path is a mount point and is empty now
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return fmt.Errorf("list what to remove: %w", err)
	}
	return errors.Join(convert.Slice(entries, func(e fs.DirEntry) error {
		return removeAround(filepath.Join(path, e.Name()), except)
	})...)
}

// removePodLogs removes the logs of the pods that have folders in the kubelet's directory, and the links to these logs.
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
	alone := othersFile() == "" // without another kubelet, the logs of pods removed long ago are coracle's too
	var errs []error
	for _, l := range logs { // named NAMESPACE_POD_UID
		uid := l.Name()[strings.LastIndexByte(l.Name(), '_')+1:]
		if alone || slices.ContainsFunc(pods, func(p fs.DirEntry) bool { return p.Name() == uid }) {
			errs = append(errs, os.RemoveAll(filepath.Join(podLogs, l.Name())))
		}
	}
	links, _ := os.ReadDir(containerLogs) // a missing folder is no error
	for _, l := range links {
		p := filepath.Join(containerLogs, l.Name())
		if target, err := os.Readlink(p); err == nil && strings.HasPrefix(target, podLogs+"/") && doesNotExist(target) {
			errs = append(errs, os.Remove(p))
		}
	}
	removeEmpty(containerLogs, podLogs)
	return errors.Join(errs...)
}

// othersFile returns the path of a file that shows that this host has, or had, another kubelet. Coracle's kubelet has
// no files of these names in the system's kubelet folder. It returns "" when there is none.
func othersFile() string {
	for _, name := range []string{"config.yaml", "kubeadm-flags.env", "pki", "kubeconfig"} {
		if p := filepath.Join(kubeletDir, name); !doesNotExist(p) {
			return p
		}
	}
	return ""
}

// removeKubeletDir removes the system's kubelet folder. Where another kubelet uses that folder too, it removes only the
// folders of the pods that ran under this coracle when coracle was stopped.
func removeKubeletDir(p config.Paths, keep *remover, uids []string) error {
	other := othersFile()
	if other == "" {
		return keep.removeAll(kubeletDir)
	}
	if !slices.Contains(kubeletRoots(p), kubeletDir) {
		return nil
	}
	keep.recordKept(kubeletDir, "it holds files of another kubelet ("+filepath.Base(other)+
		"); check it, and remove it yourself if nothing needs it")
	return errors.Join(convert.Slice(uids, func(uid string) error {
		return keep.removeAll(filepath.Join(kubeletDir, "pods", uid))
	})...)
}

// podUIDs returns the UIDs of the pods whose containers have a bundle in containerd's state. The CRI plugin writes the
// UID into the bundle.
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

// isUID says whether the text is safe as the name of a folder to remove: it has only hexadecimal digits and dashes, as
// UIDs do.
func isUID(text string) bool {
	return len(text) >= 32 && strings.Trim(text, "0123456789abcdef-") == ""
}

// bundleFiles returns the paths of the files with this name in the folders that containerd keeps for containers which
// have not ended.
func bundleFiles(state, name string) []string {
	files, _ := filepath.Glob(filepath.Join(state, "io.containerd.runtime.v2.task", "*", "*", name)) // the pattern is well-formed
	return files
}

// removeCNICache removes the results for coracle's network that containerd's CNI library stores.
func removeCNICache(keep *remover) error {
	files, _ := filepath.Glob(filepath.Join(cniCache, cni.NetworkName+"-*")) // the pattern is well-formed
	err := keep.removeAll(files...)
	removeEmpty(cniCache, filepath.Dir(cniCache))
	return err
}

func removeEmpty(dirs ...string) {
	for _, d := range dirs {
		_ = os.Remove(d) // fails where the folder holds files of other programs
	}
}

func doesNotExist(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// shimSocketDirs returns the folders of shim sockets outside the run directory. Sockets are there when the run
// directory's name is too long for a socket's path. Each shim's bundle names its socket.
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
