// SPDX-License-Identifier: Apache-2.0

// Package localvolume makes and removes the directories that are a node's local volumes, and is how the server that
// leads asks a node to do so.
//
// Folders is the node's end, Ask the server's. The package owns the folders that it was given, and in them only what
// has the name of a volume: whatever else lies there, or elsewhere, it neither changes nor removes. It follows no
// symbolic link and crosses no mount below such a folder, since pods write there what they like. It knows nothing of
// the API and never decides which volumes there are to be.
package localvolume

import (
	"path/filepath"
	"regexp"
	"strings"
)

// maxName is the kernel's NAME_MAX.
const maxName = 255

// Name is the name of a claim's directory, as Rancher's local-path-provisioner has it. PersistentVolume is always
// pvc-UID with the claim's UID. A name that is too long for a directory is cut off; the UID is at its beginning.
func Name(persistentVolume, namespace, claim string) string {
	name := persistentVolume + "_" + namespace + "_" + claim
	return name[:min(len(name), maxName)]
}

// names are those that Name returns: a UID, a namespace (no dots) and a claim, all of which the API server checks.
var names = regexp.MustCompile(`^pvc-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}_[a-z0-9]([-a-z0-9]*[a-z0-9])?_[a-z0-9][-.a-z0-9]*$`)

// aside begins the name of what is to be removed; no volume's name begins so.
const aside = ".removing-"

// isVolume says whether a directory's name is that of a volume.
func isVolume(name string) bool { return len(name) <= maxName && names.MatchString(name) }

// isManaged says whether this package gives such names.
func isManaged(name string) bool { return isVolume(name) || strings.HasPrefix(name, aside) }

// Split cuts a volume's path into the folder and the directory's name. It is false for what cannot be a volume's path.
func Split(path string) (folder, name string, ok bool) {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return "", "", false
	}
	folder, name = filepath.Dir(path), filepath.Base(path)
	return folder, name, isVolume(name)
}
