// SPDX-License-Identifier: Apache-2.0

package config

import (
	"strings"
)

// Command is a set of commands, as bits: a setting names those that have it.
type Command uint8

// The commands that take settings. Tool stands for all commands that look at a running or installed coracle
// (status, kubectl, token and so on): they read the same files for the few settings they need and ignore the rest.
// Snapshot stands for the commands below coracle snapshot, which need some more.
const (
	ServerCommand Command = 1 << iota
	AgentCommand
	ToolCommand
	SnapshotCommand

	nodeCommands = ServerCommand | AgentCommand
	allCommands  = nodeCommands | ToolCommand | SnapshotCommand
)

// String gives the commands as a user types them.
func (c Command) String() string {
	var names []string
	for _, n := range []struct {
		bit  Command
		name string
	}{{ServerCommand, "coracle server"}, {AgentCommand, "coracle agent"}} {
		if c&n.bit != 0 {
			names = append(names, n.name)
		}
	}
	return strings.Join(names, " and ")
}

// Kind says what a setting holds.
type Kind uint8

// The kinds of settings. List values may be repeated as flags and written comma separated; Args values may be
// repeated too, but a flag's comma belongs to the value, as in feature-gates=A=true,B=true.
const (
	String Kind = iota
	Bool
	Int
	List
	Args
)

// Repeats says whether the setting may be given several times.
func (k Kind) Repeats() bool { return k == List || k == Args }

// Setting is one row of the table.
type Setting struct {
	Name     string // the flag, and the key in a file
	Short    string // one letter, or nothing
	Commands Command
	Group    string // heading in the help and in docs/configuration.md
	Kind     Kind
	Holder   string   // what stands for the value in the help, such as CIDR
	Default  string   // the value when nothing is given
	Computed string   // how the default comes about when it is no fixed value
	Values   []string // all allowed values, when they can be listed
	Files    bool     // completion offers file names
	Dirs     bool     // completion offers folders
	Help     string   // one sentence or two, no full stop at the end
	Env      string   // environment variable when it is not CORACLE_<NAME>
	FlagOnly bool     // not a key in a file
}

// EnvName is the environment variable that sets it.
func (s *Setting) EnvName() string {
	if s.Env != "" {
		return s.Env
	}
	return EnvPrefix + strings.ToUpper(strings.ReplaceAll(s.Name, "-", "_"))
}

// EnvPrefix starts the name of every environment variable that coracle reads.
const EnvPrefix = "CORACLE_"

// Table lists every setting of the given commands in the order of help and documentation.
func Table(c Command) []*Setting {
	var out []*Setting
	for i := range table {
		if table[i].Commands&c != 0 {
			out = append(out, &table[i])
		}
	}
	return out
}

// Lookup finds a setting by name, nil when there is none.
func Lookup(name string) *Setting {
	for i := range table {
		if table[i].Name == name {
			return &table[i]
		}
	}
	return nil
}
