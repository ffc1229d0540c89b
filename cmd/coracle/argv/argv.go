// SPDX-License-Identifier: Apache-2.0

// Package argv removes secrets from the process list, in which every user of the machine can read the arguments of
// every program (/proc/PID/cmdline).
package argv

import (
	"regexp"
	"slices"
	"strings"
	"unsafe"
)

// secretFlags holds the flags, of all commands, whose values must not be visible to other users.
var secretFlags = []string{"token", "agent-token", "new-token", "snapshot-s3-access-key", "snapshot-s3-secret-key",
	"snapshot-s3-session-token"}

// bootstrapToken matches the token that "token create" takes as an argument without a flag.
var bootstrapToken = regexp.MustCompile(`^[a-z0-9]{6}\.[a-z0-9]{16}$`)

// Hide returns copies of the program's arguments and overwrites the values of secret flags in the original. Go's
// os.Args are in the memory that the kernel shows to others. Before main begins, the values are visible.
func Hide(args []string) []string {
	out := make([]string, len(args))
	for i, a := range args {
		out[i] = strings.Clone(a)
	}
	// With other commands, -t may be any flag. Flags may come before a command's name.
	short := slices.ContainsFunc(out, func(a string) bool {
		return slices.Contains([]string{"server", "agent", "check", "token", "snapshot", "snapshots", "etcd-snapshot"}, a)
	})
	next := false
	for i := range out {
		switch name, _, cut := strings.Cut(out[i], "="); {
		case i == 0:
		case next:
			overwrite(args[i])
			next = false
		case isSecret(name):
			if next = !cut; cut {
				overwrite(args[i][len(name)+1:])
			}
		case out[1] == "token" && bootstrapToken.MatchString(out[i]):
			overwrite(args[i])
		case short && out[i] == "-t":
			next = true
		case short && strings.HasPrefix(out[i], "-t"):
			overwrite(args[i][2:])
		}
	}
	return out
}

func isSecret(flag string) bool {
	name, ok := strings.CutPrefix(flag, "--")
	if k3s := strings.TrimPrefix(name, "etcd-"); strings.HasPrefix(k3s, "s3-") { // the snapshot commands also take these names
		name = "snapshot-" + k3s
	}
	return ok && slices.Contains(secretFlags, name)
}

// overwrite overwrites a string in its memory. Go treats strings as constant, but those of os.Args are in the process'
// own stack, which may be written.
func overwrite(s string) {
	b := unsafe.Slice(unsafe.StringData(s), len(s))
	for i := range b {
		b[i] = '*'
	}
}
