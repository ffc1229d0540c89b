// SPDX-License-Identifier: Apache-2.0

package config

import (
	"os"
	"path/filepath"
)

// Sources are the sources of settings.
type Sources struct {
	Flags   *Flags
	Environ []string // os.Environ()
	Host    Host     // LocalHost{} outside tests
	// ConfigFolder, when set, has other versions of the configuration file and its drop-ins.
	ConfigFolder string
}

// LoadServer gathers and checks the settings of coracle server. The error, if any, is of type [Problems].
func LoadServer(s Sources) (*Server, error) {
	vals, warnings, problems := s.gather(ServerCommand)
	r := &reader{vals: vals, problems: problems}
	out := r.server(s.Host)
	out.Warnings = warnings
	return &out, r.problems.orNil()
}

// LoadAgent gathers and checks the settings of coracle agent. The error, if any, is of type [Problems].
func LoadAgent(s Sources) (*Agent, error) {
	vals, warnings, problems := s.gather(AgentCommand)
	r := &reader{vals: vals, problems: problems}
	out := r.agent(s.Host)
	out.Warnings = warnings
	return &out, r.problems.orNil()
}

// Tool holds the settings of commands that inspect an installed coracle.
type Tool struct {
	Paths      Paths
	Kubeconfig string // path at which the server writes the administrator's kubeconfig

	// Warnings are errors in the configuration. These commands continue in spite of them, because a user needs these
	// commands then. Users who cannot read the file may also run the commands.
	Warnings []string
}

// LoadTool reads the settings of such a command. Its error reports wrong flags only.
func LoadTool(s Sources) (*Tool, error) {
	vals, _, problems := s.gather(ToolCommand)
	r := &reader{vals: vals}
	t := &Tool{Paths: r.paths(), Kubeconfig: r.path("write-kubeconfig"), Warnings: problems}
	return t, r.problems.orNil()
}

// gather reads files, environment and flags. Each later source overrides the earlier ones.
func (s Sources) gather(c Command) (values, []string, Problems) {
	env, warnings := fromEnviron(s.Environ, c)
	given := values{}
	if s.Flags != nil {
		given = s.Flags.values
	}
	path, named := DefaultConfigFile, Source{}
	for _, v := range []values{env, given} {
		if items := v["config"]; len(items) > 0 && items[0].text != "" {
			path, named = items[0].text, items[0].src
		}
	}
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	if s.ConfigFolder != "" {
		path, named = filepath.Join(s.ConfigFolder, filepath.Base(path)), Source{}
	}
	vals, problems := fromFiles(path, named, c)
	if c == ToolCommand && named == (Source{}) && os.Geteuid() != 0 && len(problems) > 0 {
		problems = nil // a file that this user cannot read is no error
	}
	vals.overlay(env)
	vals.overlay(given)
	return vals, warnings, problems
}
