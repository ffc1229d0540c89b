// SPDX-License-Identifier: Apache-2.0

package config

import (
	"strings"
)

// Command is a set of commands, as bits. Each setting has the set of commands that take it.
type Command uint8

// The commands that take settings. Tool means all commands that inspect a running or installed coracle (status,
// kubectl, token and so on). These read the same files, use a few settings and ignore the rest. Snapshot means the
// commands below coracle snapshot, which need some more settings.
const (
	ServerCommand Command = 1 << iota
	AgentCommand
	ToolCommand
	SnapshotCommand

	nodeCommands = ServerCommand | AgentCommand
	allCommands  = nodeCommands | ToolCommand | SnapshotCommand
)

// String returns the server and agent commands of the set as a user types them.
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

// Kind is the type of a setting's value.
type Kind uint8

// The kinds of settings. A List may be repeated as a flag, or its values separated by commas. An Args may be repeated
// too, but a comma is a part of the value, as in feature-gates=A=true,B=true.
const (
	String Kind = iota
	Bool
	Int
	List
	Args
)

// Repeats says whether a setting of this kind may be given several times.
func (k Kind) Repeats() bool { return k == List || k == Args }

// Scope says which machines have to have the same value of a setting.
type Scope uint8

const (
	// PerMachine settings may differ from server to server and from node to node.
	PerMachine Scope = iota
	// Shared settings have to be the same on all servers: the operator gives the flag to each of them. Each server uses
	// its own value, and a joining server has to agree with the server that it asks, whether the flag is given or not.
	// An operator changes the value on one server after the other. A Shared setting needs a Value.
	Shared
	// ClusterWide settings are stored in the cluster (Server.Cluster and ServerSettings): one server's flag is enough.
	// A server that joins gets the cluster's values, and must not be given others. A ClusterWide setting needs a Value
	// too, unless it may differ or is compared elsewhere.
	ClusterWide
)

// Setting is one row of the table of settings.
type Setting struct {
	Name     string // of the flag, and of the key in a file
	Short    string // one letter, or nothing
	Commands Command
	Group    string // heading in the help and in docs/configuration.md
	Kind     Kind
	Holder   string   // placeholder of the value in the help, such as CIDR
	Default  string   // the value when nothing is given
	Computed string   // how the default is computed, when it is not a fixed value
	Values   []string // all allowed values, when they can be listed
	Files    bool     // completion offers file names
	Dirs     bool     // completion offers folders
	Help     string   // one sentence or two, no full stop at the end
	Env      string   // environment variable, when it is not CORACLE_<NAME>
	FlagOnly bool     // not allowed as a key in a file
	Scope    Scope
	// Value returns the value in the form that servers compare when one joins. Shared and ClusterWide settings need it.
	Value func(*Server) string
}

// EnvName returns the name of the environment variable that sets the setting.
func (s *Setting) EnvName() string {
	if s.Env != "" {
		return s.Env
	}
	return EnvPrefix + strings.ToUpper(strings.ReplaceAll(s.Name, "-", "_"))
}

// EnvPrefix is the prefix of all environment variables that coracle reads as settings.
const EnvPrefix = "CORACLE_"

// Table returns the settings of the given commands in the order of help and documentation.
func Table(c Command) []*Setting {
	var out []*Setting
	for i := range table {
		if table[i].Commands&c != 0 {
			out = append(out, &table[i])
		}
	}
	return out
}

// Lookup returns the setting with this name, and nil when there is none.
func Lookup(name string) *Setting {
	for i := range table {
		if table[i].Name == name {
			return &table[i]
		}
	}
	return nil
}
