// SPDX-License-Identifier: Apache-2.0

package config

import (
	"slices"
	"strings"
)

// trialVariables are no settings: they are for the starter (internal/slots), which hands them on to the program, and
// for tests of trials.
var trialVariables = []string{"CORACLE_VERSIONS", "CORACLE_STARTER", "CORACLE_TRIAL_SECONDS", "CORACLE_TRIAL_SOAK"}

// fromEnviron returns the settings of a command in the environment ("NAME=value" each). It also returns a warning for
// each unknown variable with coracle's prefix, and for each with k3s'. Such a variable is no error, because an
// environment is often shared.
func fromEnviron(environ []string, c Command) (values, []string) {
	known := map[string]*Setting{}
	var candidates []string
	for _, s := range Table(allCommands) {
		known[s.EnvName()] = s
		candidates = append(candidates, s.EnvName())
	}
	vals, warnings := values{}, []string(nil)
	for _, kv := range environ {
		name, text, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(name, k3sPrefix) && text != "" {
			warnings = append(warnings, k3sVariable(name))
		}
		if !strings.HasPrefix(name, EnvPrefix) {
			continue
		}
		s := known[name]
		if s == nil && slices.Contains(trialVariables, name) {
			continue
		}
		if s == nil {
			w := "environment variable " + name + " is unknown and has no effect"
			if best := nearestEnv(name, candidates); best != "" {
				w += "; did you mean " + best + "?"
			}
			warnings = append(warnings, w)
			continue
		}
		if s.Commands&c == 0 || text == "" { // many tools unset a variable by making it empty
			continue
		}
		vals[s.Name] = itemsFromEnv(s, text)
	}
	return vals, warnings
}

// Environment returns the variable of the setting with this name, and its value in the environment ("NAME=value"
// each). The value is "" where the environment has none.
func Environment(environ []string, name string) (variable, value string) {
	variable = Lookup(name).EnvName()
	for _, kv := range environ {
		if text, ok := strings.CutPrefix(kv, variable+"="); ok {
			value = text
		}
	}
	return variable, value
}

func itemsFromEnv(s *Setting, text string) []item {
	src := Source{Env: s.EnvName()}
	if !s.Kind.Repeats() {
		return []item{{text, src}}
	}
	items := []item{}
	for _, t := range splitList(text) {
		items = append(items, item{t, src})
	}
	return items
}

func nearestEnv(name string, candidates []string) string {
	short := make([]string, len(candidates))
	for i, c := range candidates {
		short[i] = strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(c, EnvPrefix), "_", "-"))
	}
	best := Nearest(strings.TrimPrefix(name, EnvPrefix), short)
	for i := range short {
		if short[i] == best {
			return candidates[i]
		}
	}
	return ""
}
