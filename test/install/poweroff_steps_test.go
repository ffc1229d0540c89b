// SPDX-License-Identifier: Apache-2.0

package install

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// steps makes each command that changes the disk leave a line with its arguments, and what it has copied.
const steps = `
step() {
  line=$1
  for a; do case $a in -*) ;; *) last=$a line="$line|$a" ;; esac; done
  echo "$line" >>"$STEPS"
  [ "$1" != cp ] || command cp "$last" "$STEPS.$(wc -l <"$STEPS")"
}
for name in mv ln cp rm mkdir chmod sync; do
  eval "$name() { command $name \"\$@\" || return; step $name \"\$@\"; }"
done
service=systemd
systemctl() { :; }
`

var execStart = regexp.MustCompile(`(?m)^ExecStart=(\S+) "server"$`)

// bootUnit is what systemd runs at a boot with the unit that is on the disk, or "" where there is none.
func (s *script) bootUnit() (string, error) {
	unit, err := os.ReadFile(filepath.Join(s.dir, "unit"))
	if os.IsNotExist(err) {
		return "", nil
	}
	match := execStart.FindSubmatch(unit)
	if err != nil || match == nil {
		return "", err
	}
	c := exec.Command(string(match[1]), "server")
	if _, value, ok := strings.Cut(string(unit), "\nEnvironment=\""); ok {
		value, _, _ = strings.Cut(value, "\"")
		c.Env = append(os.Environ(), value)
	}
	out, err := c.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// TestLossOfPowerWhileInstalling: after each call that changes the disk, and whatever of it the disk forgets, one whole
// version runs at the next boot, and another run of the installer ends as the first would have.
func TestLossOfPowerWhileInstalling(t *testing.T) {
	old := func(s *script) {
		s.oldInstallation(s.program("one"))
		unit := "[Service]\nExecStart=" + filepath.Join(s.dir, "bin/coracle") + " \"server\"\n"
		testenv.NoError(s, os.WriteFile(filepath.Join(s.dir, "unit"), []byte(unit), 0o600))
	}
	for _, tt := range []struct {
		name   string
		before func(s *script)
		want   string // after a whole run
	}{
		{"first", func(*script) {}, "two - -"},
		{"old installation", old, "two one -"},
		{"switch", func(s *script) { s.mustInstall(s.program("zero"), "server"); s.mustInstall(s.program("one"), "") }, "two one -"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSlots(t)
			if tt.name == "switch" {
				s.text += "service=systemd; systemctl() { :; }\n"
			}
			tt.before(s)
			two := s.program("two")
			disk := readDisk(t, s.dir)
			log := filepath.Join(t.TempDir(), "steps")
			plain := s.text
			s.text += "STEPS=" + log + steps
			s.mustInstall(two, "server")
			testenv.Equal(t, s.versions(), tt.want, "versions:")
			s.text = plain + "service=systemd; systemctl() { :; }\n"
			seen := map[string]bool{}
			seed := testenv.Seed(t)
			done := strings.Split(strings.TrimSpace(string(testenv.Must(os.ReadFile(log))(t))), "\n")
			for i, line := range append([]string{""}, done...) {
				if i > 0 {
					args := strings.Split(line, "|")
					content, _ := os.ReadFile(fmt.Sprintf("%s.%d", log, i)) // of copies only
					disk.do(args[0], args[2:], content)
				}
				for _, l := range losses(seed + uint64(i)) {
					state := disk.lose(l)
					if seen[state] && i < len(done) {
						continue
					}
					seen[state] = true
					ran, err := s.bootUnit()
					whole := ran == "one server" || ran == "two server" || ran == "" && tt.name == "first"
					if i == len(done) {
						whole = ran == "two server" // what the installer has said is done stays
					}
					testenv.Require(t, err == nil && whole, "after step %d, %s, which has lost %s: %q runs, %v\n%s", i, line, l.name, ran, err, state)
					if l.name == "everything" {
						s.mustInstall(two, "server")
						ran, err = s.bootUnit()
						testenv.Require(t, err == nil && ran == "two server", "again after step %d, %s: %q, %v", i, line, ran, err)
					}
				}
			}
			t.Logf("%d steps, %d states", len(done), len(seen))
		})
	}
}
