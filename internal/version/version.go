// SPDX-License-Identifier: Apache-2.0

// Package version knows which coracle this is. The linker fills in the variables of Kubernetes' own version package,
// since every client asks for those; a coracle's version is Kubernetes' with "+coracle" and a number behind it.
package version

import (
	"runtime"
	"strings"

	k8s "k8s.io/component-base/version"
)

// unlinked is the version of a binary that was built without the Makefile.
const unlinked = "v0.0.0-dev"

// Info says what the binary was made of.
type Info struct {
	Coracle    string            `json:"coracle"`
	Commit     string            `json:"commit,omitempty"`
	Date       string            `json:"date,omitempty"`
	Kubernetes string            `json:"kubernetes"`
	Go         string            `json:"go"`
	Platform   string            `json:"platform"`
	Parts      map[string]string `json:"parts,omitempty"` // versions of the libraries inside, by name
}

// Get returns what is known. Parts is the caller's to add.
func Get() Info {
	v := k8s.Get()
	i := Info{
		Coracle:  v.GitVersion,
		Commit:   v.GitCommit,
		Date:     v.BuildDate,
		Go:       runtime.Version(),
		Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
	// Git's placeholders, as they are in the module, say that the linker was told nothing.
	if strings.Contains(v.GitVersion, "$") {
		i.Coracle = unlinked
	}
	if strings.Contains(v.GitCommit, "$") {
		i.Commit, i.Date = "", ""
	}
	if v.GitTreeState == "dirty" {
		i.Commit += " (with changes)"
	}
	i.Kubernetes, _, _ = strings.Cut(i.Coracle, "+")
	return i
}
