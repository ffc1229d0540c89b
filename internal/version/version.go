// SPDX-License-Identifier: Apache-2.0

// Package version knows which coracle this is. The linker fills in the variables of Kubernetes' own version package,
// since every client asks for those; a coracle's version is Kubernetes' with "+coracle" and a number behind it.
package version

import (
	"runtime"
	"strconv"
	"strings"

	k8s "k8s.io/component-base/version"
)

// unlinked is the version of a binary that was built without the Makefile.
const unlinked = "v0.0.0-dev"

// protocol is a number in digits, so that the linker can set it: -X …/internal/version.protocol=3 makes a build that
// says that it is another version than it is, for tests.
var protocol = "2"

// Protocol is the version of what machines of a cluster say to one another: how they join, gossip, the calls of servers
// and nodes to one another, and what these mean. A change that the version before cannot live with raises
// the number. The versions so far:
//
//	1  everything before machines said their version when they joined
//	2  they say it
func Protocol() int {
	n, err := strconv.Atoi(protocol)
	if err != nil || n < 1 {
		panic("version: the linker was given a protocol that is no number: " + protocol)
	}
	return n
}

// Understands says whether this version and one of another protocol can be in one cluster: a version and the one before
// it can, so that machines are updated one after the other, in any order.
func Understands(other int) bool {
	distance := Protocol() - other
	return distance >= -1 && distance <= 1
}

// Info says what the binary was made of.
type Info struct {
	Coracle    string            `json:"coracle"`
	Commit     string            `json:"commit,omitempty"`
	Date       string            `json:"date,omitempty"`
	Kubernetes string            `json:"kubernetes"`
	Protocol   int               `json:"protocol"`
	Go         string            `json:"go"`
	Platform   string            `json:"platform"`
	Libraries  map[string]string `json:"parts,omitempty"` // versions of the libraries inside, by name
}

// Get returns what is known. Libraries is the caller's to add.
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
	// Git's placeholders, as they are in the module, say that the linker was given nothing.
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
