// SPDX-License-Identifier: Apache-2.0

// Package argv takes secrets out of the process list, where every user of the machine reads the arguments of every
// program (/proc/PID/cmdline).
package argv

import (
	"regexp"
	"slices"
	"strings"
	"unsafe"
)

// secret names the flags whose values no other user is to see, of all commands.
var secret = []string{"token", "agent-token", "new-token", "snapshot-s3-access-key", "snapshot-s3-secret-key", "snapshot-s3-session-token"}

// bootstrapToken is what "token create" takes as an argument without a flag.
var bootstrapToken = regexp.MustCompile(`^[a-z0-9]{6}\.[a-z0-9]{16}$`)

// Hide returns copies of a program's own arguments, which Go has where the kernel shows them, and overwrites the values
// of secret flags there. Before main begins they are in sight.
func Hide(args []string) []string {
	out := make([]string, len(args))
	for i, a := range args {
		out[i] = strings.Clone(a)
	}
	// Of other commands -t may be anything. Flags may come before a command's name.
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
	if k3s := strings.TrimPrefix(name, "etcd-"); strings.HasPrefix(k3s, "s3-") { // snapshot takes these names, too
		name = "snapshot-" + k3s
	}
	return ok && slices.Contains(secret, name)
}

// overwrite changes a string where it lies. Go takes strings for constant; those of os.Args lie in the process' own
// stack, which may be written.
func overwrite(s string) {
	b := unsafe.Slice(unsafe.StringData(s), len(s))
	for i := range b {
		b[i] = '*'
	}
}
