//go:build twolevels

// SPDX-License-Identifier: Apache-2.0

package config

// A version of the tests knows a setting more than the others, as a later version does.
func init() {
	table = append(table, Setting{Name: "later-setting", Commands: nodeCommands, Group: groupParts, Holder: "WORD",
		Help: "For tests: a setting that the other versions do not know"})
}
