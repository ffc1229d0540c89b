// SPDX-License-Identifier: Apache-2.0

package config

import (
	"slices"
	"strings"
)

// shownHolders are the placeholders of values that others may see. A setting with another placeholder is hidden, so
// that a new setting is hidden until its placeholder is in this list.
var shownHolders = []string{
	"", "ADDRESS:PORT", "CIDR", "CRON", "DIR", "DOMAIN", "DURATION", "FILE", "FROM-TO", "GROUP", "HOST", "ID", "IMAGE", "IP", "KEY=VALUE",
	"KEY=VALUE:EFFECT", "MODE", "N", "NAME", "PATH", "PATTERN=N", "PORT", "RANGE", "RESOURCE", "SCOPE", "SIZE", "TYPE", "URL", "WHAT",
}

// Shown is a setting that was given, as others may see it.
type Shown struct {
	Name, Value string
	// Source says where the value is from, as messages do.
	Source string
}

// Show returns the settings that were given, in the order of the table, and the values that others must not see. Of a
// hidden setting it returns no value, and of arguments for upstream's components only their names. The value of another
// setting may be a URL with a password.
func Show(s Sources, c Command) (shown []Shown, hidden []string, problems Problems) {
	vals, _, problems := s.gather(c)
	for _, setting := range Table(c) {
		for _, it := range vals[setting.Name] {
			value := it.text
			if !slices.Contains(shownHolders, setting.Holder) {
				name, secret, isArg := strings.Cut(value, "=")
				if value = "***"; setting.Kind == Args && isArg {
					value = name + "=***"
				} else {
					secret = it.text
				}
				hidden = append(hidden, secret)
			}
			shown = append(shown, Shown{setting.Name, value, it.src.String()})
		}
	}
	return shown, hidden, problems
}
