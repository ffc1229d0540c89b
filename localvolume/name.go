// SPDX-License-Identifier: Apache-2.0

// Package localvolume makes and removes the directories of a node's local volumes. The leading server uses it to
// request that from a node.
//
// Folders is the node's end, Ask the server's. The package owns the folders that it was given, and in them only entries
// with the name of a volume: it neither changes nor removes anything else. It follows no symbolic link and crosses no
// mount below such a folder, since pods write there what they like. It knows nothing of the API and never decides which
// volumes should exist.
package localvolume

import (
	"path/filepath"
	"regexp"
	"strings"
)

// maxName is the kernel's NAME_MAX.
const maxName = 255

// Name returns the name of a claim's directory, in the form of Rancher's local-path-provisioner. PersistentVolume is
// always pvc-UID with the claim's UID. A name that is too long for a directory is cut off. The UID is at its beginning.
func Name(persistentVolume, namespace, claim string) string {
	name := persistentVolume + "_" + namespace + "_" + claim
	return name[:min(len(name), maxName)]
}

// namePattern matches the names that Name returns: a UID, a namespace (no dots) and a claim, all of which the API
// server checks.
var namePattern = regexp.MustCompile(`^pvc-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}_[a-z0-9]([-a-z0-9]*[a-z0-9])?_[a-z0-9][-.a-z0-9]*$`)

// removingPrefix starts the name of a directory that is to be removed. No volume's name starts like that.
const removingPrefix = ".removing-"

// isVolume reports whether a directory's name is a volume's.
func isVolume(name string) bool { return len(name) <= maxName && namePattern.MatchString(name) }

// isManaged reports whether this package makes such names.
func isManaged(name string) bool { return isVolume(name) || strings.HasPrefix(name, removingPrefix) }

// Split splits a volume's path into the folder and the directory's name. It returns false for what cannot be a volume's
// path.
func Split(path string) (folder, name string, ok bool) {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return "", "", false
	}
	folder, name = filepath.Dir(path), filepath.Base(path)
	return folder, name, isVolume(name)
}
