// SPDX-License-Identifier: Apache-2.0

// Package version holds the version of coracle. The linker sets the variables of Kubernetes' own version package,
// because all clients ask for these. A coracle version is Kubernetes' version with "+coracle" and a number appended.
package version

import (
	"runtime"
	"strconv"
	"strings"

	k8s "k8s.io/component-base/version"
)

// unlinked is the version of a binary that was built without the Makefile.
const unlinked = "v0.0.0-dev"

// protocol is a number in digits, so that the linker can set it. For tests, -X …/internal/version.protocol=3 makes a
// build that reports another version.
var protocol = "2"

// Protocol returns the version of the protocols between machines of a cluster: how they join, gossip, the calls between
// servers and nodes, and the meaning of these. A change that is not compatible with the version before increments the
// number. The versions so far:
//
//	1  everything before machines sent their version when they joined
//	2  they send it
func Protocol() int {
	n, err := strconv.Atoi(protocol)
	if err != nil || n < 1 {
		panic("version: the linker was given a protocol that is no number: " + protocol)
	}
	return n
}

// Understands says whether machines with this version and another one can be in one cluster. That is so for adjacent
// versions, so that machines can be updated one after the other, in any order.
func Understands(other int) bool {
	distance := Protocol() - other
	return distance >= -1 && distance <= 1
}

// Info describes how the binary was built.
type Info struct {
	Coracle    string            `json:"coracle"`
	Commit     string            `json:"commit,omitempty"`
	Date       string            `json:"date,omitempty"`
	Kubernetes string            `json:"kubernetes"`
	Protocol   int               `json:"protocol"`
	Go         string            `json:"go"`
	Platform   string            `json:"platform"`
	Libraries  map[string]string `json:"parts,omitempty"` // versions of the libraries in the binary, by name
}

// Get returns the build information. The caller adds Libraries.
func Get() Info {
	v := k8s.Get()
	i := Info{
		Coracle:  v.GitVersion,
		Commit:   v.GitCommit,
		Date:     v.BuildDate,
		Go:       runtime.Version(),
		Platform: runtime.GOOS + "/" + runtime.GOARCH,
		Protocol: Protocol(),
	}
	// The module has placeholders of git here. They remain when the linker has set no values.
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
