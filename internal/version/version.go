// SPDX-License-Identifier: Apache-2.0

// Package version knows which coracle this is. It owns the variables that the linker fills in and nothing else.
package version

import (
	"runtime"

	k8s "k8s.io/component-base/version"
)

// Filled in by the linker: -X github.com/coracle-k8s/coracle/internal/version.version=v0.1.0
var (
	version = "v0.0.0-dev"
	commit  = ""
	date    = ""
)

// Info says what the binary was made of.
type Info struct {
	Coracle    string            `json:"coracle"`
	Commit     string            `json:"commit,omitempty"`
	Date       string            `json:"date,omitempty"`
	Kubernetes string            `json:"kubernetes"`
	Go         string            `json:"go"`
	Platform   string            `json:"platform"`
	Carried    map[string]string `json:"carried,omitempty"` // versions of the programs inside
}

// Get returns what is known. Carried is the caller's to add.
func Get() Info {
	return Info{
		Coracle:    version,
		Commit:     commit,
		Date:       date,
		Kubernetes: k8s.Get().GitVersion,
		Go:         runtime.Version(),
		Platform:   runtime.GOOS + "/" + runtime.GOARCH,
	}
}
