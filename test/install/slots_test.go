// SPDX-License-Identifier: Apache-2.0

package install

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/slots"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// newSlots is a script that installs programs of the test, which say who they are, and services that are not started.
func newSlots(t *testing.T) *script {
	t.Helper()
	s := newScript(t)
	testenv.NoError(t, os.WriteFile(filepath.Join(s.dir, "starter"), []byte(slots.Starter), 0o600))
	s.text += `bin_dir=$etc/bin program=$bin_dir/coracle service=none
find_machine() { arch=amd64; }
service_running() { [ -e "$etc/running" ]; }
start_service() { echo started; }
wait_ready() { :; }
next_steps() { :; }
`
	return s
}

// program is a program with a name. "upgrade --here" notes its arguments, and ends with the code in the file "code".
func (s *script) program(name string) string {
	s.Helper()
	path := filepath.Join(s.dir, "coracle-"+name)
	text := strings.ReplaceAll(`#!/bin/sh
case "$1 ${2:-}" in
  "version ") echo "coracle `+name+`" ;;
  "upgrade folder") echo "$(cat ETC/place 2>/dev/null || echo "${CORACLE_DATA_DIR:-ETC/data}")/versions" ;;
  "upgrade starter") cat ETC/starter ;;
  "upgrade --here") echo "$*" >>ETC/upgrades; exit "$(cat ETC/code)" ;;
  "check "*) ;;
  *) echo "`+name+` $*" ;;
esac
`, "ETC", s.dir)
	testenv.NoError(s, os.WriteFile(path, []byte(text), 0o755))
	return path
}

// install runs the whole script with a program.
func (s *script) install(program, args string, env ...string) (string, error) {
	s.Helper()
	return s.run("main "+args, append([]string{"INSTALL_CORACLE_BINARY=" + program, "INSTALL_CORACLE_SHA256=skip",
		"INSTALL_CORACLE_SYMLINK=force"}, env...)...)
}

func (s *script) mustInstall(program, args string, env ...string) string {
	s.Helper()
	out, err := s.install(program, args, env...)
	testenv.Require(s, err == nil, "%v:\n%s", err, out)
	return out
}

// versions says which programs the links name: "current previous trial".
func (s *script) versions() string {
	s.Helper()
	var out []string
	for _, name := range []string{"current", "previous", "trial"} {
		file := filepath.Join(s.dir, "data/versions", name, "coracle")
		text, err := exec.Command(file, "version").Output()
		if errors.Is(err, fs.ErrNotExist) {
			out = append(out, "-")
			continue
		}
		testenv.NoError(s, err)
		out = append(out, strings.TrimPrefix(strings.TrimSpace(string(text)), "coracle "))
	}
	return strings.Join(out, " ")
}

// boot is what the service runs at the next boot.
func (s *script) boot() string {
	s.Helper()
	c := exec.Command(filepath.Join(s.dir, "bin/coracle-start"), "server")
	c.Env = append(os.Environ(), slots.FolderEnv+"="+filepath.Join(s.dir, "data/versions"))
	out, err := c.CombinedOutput()
	testenv.NoError(s, err, "%s", out)
	return strings.TrimSpace(string(out))
}

func digestOf(t *testing.T, path string) string {
	t.Helper()
	sum := sha256.Sum256(testenv.Must(os.ReadFile(path))(t))
	return hex.EncodeToString(sum[:])
}

// running says whether the service runs, for the next run of the script.
func (s *script) running(code string) {
	s.Helper()
	testenv.NoError(s, errors.Join(os.WriteFile(filepath.Join(s.dir, "running"), nil, 0o600),
		os.WriteFile(filepath.Join(s.dir, "code"), []byte(code), 0o600)))
}

func TestFirstInstallation(t *testing.T) {
	s := newSlots(t)
	one := s.program("one")
	out := s.mustInstall(one, "server --node-name a")
	testenv.Contains(t, out, "started", "the service was not started:")
	testenv.Equal(t, s.versions(), "one - -", "versions:")
	testenv.Equal(t, s.boot(), "one server", "the service runs")
	for _, link := range [][2]string{{"bin/coracle", filepath.Join(s.dir, "data/versions/current/coracle")}, {"bin/kubectl", "coracle"},
		{"data/versions/current", digestOf(t, one)}} {
		testenv.Equal(t, testenv.Must(os.Readlink(filepath.Join(s.dir, link[0])))(t), link[1], "%s leads to", link[0])
	}
	s.has("bin/coracle-start", 0o755, strings.Split(strings.TrimSuffix(slots.Starter, "\n"), "\n")...)
	testenv.NoError(t, os.Remove(filepath.Join(s.dir, "starter"))) // a second run with the same program
	testenv.NoError(t, os.WriteFile(filepath.Join(s.dir, "starter"), []byte(slots.Starter), 0o600))
	s.running("1")
	testenv.Contains(t, s.mustInstall(one, ""), "nothing has changed", "the second run:")
	s.must("write_systemd; write_openrc", slots.FolderEnv+"=/elsewhere")
	for name, want := range map[string][]string{
		"unit": {"\nExecStart=BIN/coracle-start \"server\"", "\nEnvironment=\"CORACLE_VERSIONS=DATA/versions\"\n", "\n[Unit]",
			"\nStartLimitIntervalSec=0\n"},
		"pods-unit":           {"\nExecStop=BIN/coracle node stop-pods"},
		"init":                {"\ncommand=\"BIN/coracle-start\"", "\nCORACLE_VERSIONS='DATA/versions'\n", " BIN/coracle node stop-pods"},
		"bin/coracle-service": {"\nbin='BIN/coracle-start'\n", "CORACLE_VERSIONS=$versions\n", "BIN/coracle node stop-pods"},
	} {
		text := string(testenv.Must(os.ReadFile(filepath.Join(s.dir, name)))(t))
		for _, w := range want {
			w = strings.NewReplacer("BIN", filepath.Join(s.dir, "bin"), "DATA", s.dir).Replace(w)
			testenv.Contains(t, text, strings.TrimPrefix(w, "\n[Unit]"), "%s:", name)
		}
	}
	if os.Getuid() == 0 { // as any user may
		testenv.NoError(t, os.Chmod(filepath.Dir(s.dir), 0o755))
		testenv.NoError(t, os.Chmod(s.dir, 0o755))
		user := exec.Command("setpriv", "--reuid", "65534", "--clear-groups", filepath.Join(s.dir, "bin/kubectl"), "get")
		out, err := user.CombinedOutput()
		testenv.True(t, err == nil && string(out) == "one get\n", "a user's kubectl: %v: %s", err, out)
	}
}

// TestSwitchWithoutTrial: where nothing runs, or on demand, the new version is current at once, and the one before
// stays. A trial that goes on ends.
func TestSwitchWithoutTrial(t *testing.T) {
	s := newSlots(t)
	s.mustInstall(s.program("one"), "server")
	s.mustInstall(s.program("two"), "")
	testenv.Equal(t, s.versions(), "two one -", "versions:")
	s.running("1")
	testenv.NoError(t, os.Symlink(digestOf(t, s.program("one")), filepath.Join(s.dir, "data/versions/trial")))
	testenv.Contains(t, s.mustInstall(s.program("three"), "", "INSTALL_CORACLE_SKIP_TRIAL=1"), "started", "")
	testenv.Equal(t, s.versions(), "three two -", "versions:")
	testenv.Equal(t, len(testenv.Must(filepath.Glob(filepath.Join(s.dir, "data/versions", strings.Repeat("?", 64))))(t)), 2, "programs:")
	testenv.Equal(t, s.boot(), "three server", "the service runs")
	s.mustInstall(s.program("four"), "", "INSTALL_CORACLE_SKIP_START=1")
	testenv.Equal(t, s.versions(), "four three -", "versions:")
	testenv.ErrorIs(t, testenv.Err(os.Stat(filepath.Join(s.dir, "upgrades"))), fs.ErrNotExist)
}

// TestRottenVersionIsRepaired: the installer of the version that runs puts its program back in place, where the file
// has other content by now. That is no trial, and the version before stays.
func TestRottenVersionIsRepaired(t *testing.T) {
	for _, code := range []string{"", "1"} { // it runs, or not
		s := newSlots(t)
		s.mustInstall(s.program("one"), "server")
		two := s.program("two")
		s.mustInstall(two, "")
		if code != "" {
			s.running(code)
		}
		rotten := filepath.Join(s.dir, "data/versions/current/coracle")
		testenv.NoError(t, os.WriteFile(rotten, []byte("#!/bin/sh\nexit 1\n"), 0o755))
		testenv.Contains(t, s.mustInstall(two, ""), "started", "")
		testenv.Equal(t, s.versions(), "two one -", "versions:")
		testenv.Equal(t, digestOf(t, rotten), digestOf(t, two), "the program is")
	}
}

// TestSettingsFromBeforeATrialStay: the version that a refusal led back to may need them at each start, until it has
// reported the refusal.
func TestSettingsFromBeforeATrialStay(t *testing.T) {
	s := newSlots(t)
	one := s.program("one")
	s.mustInstall(one, "server")
	versions := filepath.Join(s.dir, "data/versions")
	candidate := strings.Repeat("c", 64)
	settings := filepath.Join(versions, candidate, slots.SettingsFolder)
	testenv.NoError(t, os.MkdirAll(settings, 0o755))
	testenv.NoError(t, os.WriteFile(filepath.Join(versions, "refused"), []byte(candidate+" 3 starts without a commit\n"), 0o600))
	s.mustInstall(one, "server --node-name a")
	testenv.NoError(t, testenv.Err(os.Stat(settings)))
	testenv.NoError(t, os.WriteFile(filepath.Join(versions, "refused"), []byte(candidate+" 3 starts without a commit\nreported\n"), 0o600))
	s.mustInstall(one, "")
	testenv.ErrorIs(t, testenv.Err(os.Stat(settings)), fs.ErrNotExist)
}

// TestUpgradeIsATrial: the new program tries itself, with the flags that say where things are, and install.sh ends as
// it does. The settings are those of before.
func TestUpgradeIsATrial(t *testing.T) {
	s := newSlots(t)
	s.mustInstall(s.program("one"), "server --data-dir '"+s.dir+"/data' --node-name a")
	s.running("3")
	two := s.program("two")
	testenv.NoError(t, os.WriteFile(filepath.Join(s.dir, "starter"), []byte(slots.Starter+"# newer\n"), 0o600))
	out, err := s.install(two, "")
	testenv.True(t, err != nil && strings.Contains(out, "coracle two was not installed"), "%v: %s", err, out)
	calls := string(testenv.Must(os.ReadFile(filepath.Join(s.dir, "upgrades")))(t))
	testenv.Equal(t, calls, fmt.Sprintf("upgrade --here %s --data-dir=%s/data\n", two, s.dir), "calls:")
	s.has("service.args", 0o600, "server", "--data-dir", s.dir+"/data", "--node-name", "a")
	s.has("bin/coracle-start", 0o755, strings.Split(strings.TrimSuffix(slots.Starter, "\n"), "\n")...)

	s.running("0")
	out = s.mustInstall(two, "")
	testenv.False(t, strings.Contains(out, "started"), "the service was started once more:\n%s", out)
	command := strings.TrimSpace(string(testenv.Must(os.ReadFile(filepath.Join(s.dir, "data/versions/restart")))(t)))
	testenv.Equal(t, command, "'"+s.dir+"/bin/coracle-service' restart", "what restarts the service:")

	// A packed one is written once: to where it would run.
	three := s.program("three")
	digest := digestOf(t, three)
	testenv.NoError(t, exec.Command("xz", three).Run())
	s.mustInstall(three+".xz", "")
	calls = string(testenv.Must(os.ReadFile(filepath.Join(s.dir, "upgrades")))(t))
	testenv.Contains(t, calls, fmt.Sprintf("upgrade --here %s/data/versions/%s/coracle ", s.dir, digest), "calls:")
	testenv.ErrorIs(t, testenv.Err(os.Stat(filepath.Join(s.dir, "bin/coracle.new"))), fs.ErrNotExist)
}

// TestSettingsAndVersionAtOnceAreRefused, and nothing is changed.
func TestSettingsAndVersionAtOnceAreRefused(t *testing.T) {
	s := newSlots(t)
	s.mustInstall(s.program("one"), "server --node-name a", "CORACLE_NODE_LABEL=a=b")
	s.running("0")
	for _, c := range []struct{ args, env, want string }{
		{"server --node-name 'b c'", "", "install.sh 'server' '--node-name' 'b c'"},
		{"", "CORACLE_NODE_LABEL=c=d", "install.sh\n"},
		{"", "INSTALL_CORACLE_EXEC=agent", "install.sh\n"},
	} {
		out, err := s.install(s.program("two"), c.args, c.env)
		testenv.True(t, err != nil && strings.Contains(out, c.want) && strings.Contains(out, "Nothing was changed"), "%+v: %v: %s", c, err, out)
		s.has("service.args", 0o600, "server", "--node-name", "a")
		s.has("service.env", 0o600, `CORACLE_NODE_LABEL="a=b"`)
		testenv.Equal(t, s.versions(), "one - -", "versions:")
	}
	testenv.Contains(t, s.mustInstall(s.program("one"), "server --node-name b"), "started", "settings alone:")
	s.mustInstall(s.program("two"), "server --node-name b", "CORACLE_NODE_LABEL=a=b") // the same as they are
	testenv.NoError(t, testenv.Err(os.Stat(filepath.Join(s.dir, "upgrades"))))
	// What an earlier installer left among the arguments is moved, and that is no change.
	testenv.NoError(t, os.WriteFile(filepath.Join(s.dir, "service.args"), []byte("server\n--token=x\n"), 0o600))
	s.mustInstall(s.program("two"), "")
	s.has("service.env", 0o600, `CORACLE_NODE_LABEL="a=b"`, `CORACLE_TOKEN="x"`)
}

// oldInstallation is what installers made before there were versions.
func (s *script) oldInstallation(program string) {
	s.Helper()
	testenv.NoError(s, os.MkdirAll(filepath.Join(s.dir, "bin"), 0o755))
	testenv.NoError(s, os.Rename(program, filepath.Join(s.dir, "bin/coracle")))
	testenv.NoError(s, os.WriteFile(filepath.Join(s.dir, "service.args"), []byte("server\n"), 0o600))
}

// TestOldInstallationMoves at its first run, also with the same program: it becomes the version before.
func TestOldInstallationMoves(t *testing.T) {
	for name, want := range map[string]string{"two": "two one -", "one": "one - -"} {
		s := newSlots(t)
		s.oldInstallation(s.program("one"))
		s.running("1")
		testenv.Contains(t, s.mustInstall(s.program(name), ""), "started", "")
		testenv.Equal(t, s.versions(), want, "versions:")
		testenv.Equal(t, s.boot(), name+" server", "the service runs")
	}
}

// TestVersionsFollowTheDataDirectory when settings place it elsewhere.
func TestVersionsFollowTheDataDirectory(t *testing.T) {
	s := newSlots(t)
	one := s.program("one")
	s.mustInstall(one, "server", "CORACLE_DATA_DIR="+s.dir+"/other")
	s.running("1")
	testenv.Contains(t, s.mustInstall(one, "", "CORACLE_DATA_DIR="+s.dir+"/data"), "started", "")
	testenv.Equal(t, s.versions(), "one - -", "versions:")
	testenv.ErrorIs(t, testenv.Err(os.Stat(filepath.Join(s.dir, "other/versions"))), fs.ErrNotExist)
}

// TestDataDirectoryByAnotherPath is the same one, whose versions stay.
func TestDataDirectoryByAnotherPath(t *testing.T) {
	s := newSlots(t)
	s.mustInstall(s.program("one"), "server")
	testenv.NoError(t, os.Symlink("data", filepath.Join(s.dir, "other")))
	s.mustInstall(s.program("one"), "", "CORACLE_DATA_DIR="+s.dir+"/other")
	testenv.Equal(t, s.versions(), "one - -", "versions:")
	testenv.Equal(t, s.boot(), "one server", "the service runs")
}

// TestDataDirectoryAndVersionAtOnceAreRefused where the configuration places it, which this script does not read.
func TestDataDirectoryAndVersionAtOnceAreRefused(t *testing.T) {
	s := newSlots(t)
	s.mustInstall(s.program("one"), "server")
	s.running("1")
	testenv.NoError(t, os.WriteFile(filepath.Join(s.dir, "place"), []byte(s.dir+"/other\n"), 0o600))
	out, err := s.install(s.program("two"), "")
	testenv.True(t, err != nil && strings.Contains(out, "the data directory has changed"), "%v: %s", err, out)
	testenv.Equal(t, s.versions(), "one - -", "versions:")
	testenv.Equal(t, s.boot(), "one server", "the service runs")
	testenv.Equal(t, testenv.Must(os.Readlink(filepath.Join(s.dir, "bin/coracle")))(t), s.dir+"/data/versions/current/coracle",
		"the program is")
	s.mustInstall(s.program("one"), "")
	testenv.ErrorIs(t, testenv.Err(os.Stat(filepath.Join(s.dir, "data/versions"))), fs.ErrNotExist)
}

// TestPathsWithSpecialCharacters: what is written for the service and for removing it all are scripts still.
func TestPathsWithSpecialCharacters(t *testing.T) {
	s := newSlots(t)
	dir := s.dir + `/o'b $HOME %i "q"`
	s.mustInstall(s.program("one"), "server", "CORACLE_DATA_DIR="+dir)
	for _, name := range []string{"coracle-uninstall", "coracle-service"} {
		text := string(testenv.Must(os.ReadFile(filepath.Join(s.dir, "bin", name)))(t))
		var line string
		for l := range strings.Lines(text) {
			if strings.HasPrefix(l, "versions=") {
				line = l
			}
		}
		out, err := exec.Command("sh", "-c", line+`printf %s "$versions"`).CombinedOutput()
		testenv.True(t, err == nil && string(out) == dir+"/versions", "%s: %v: %s", name, err, out)
		out, err = exec.Command("sh", "-n", filepath.Join(s.dir, "bin", name)).CombinedOutput()
		testenv.NoError(t, err, "%s: %s", name, out)
	}
}

// TestDataDirectoryThatRunsNothing is refused before anything is changed.
func TestDataDirectoryThatRunsNothing(t *testing.T) {
	testenv.RequireRoot(t, "it mounts")
	s := newSlots(t)
	one := s.program("one")
	s.oldInstallation(one)
	data := filepath.Join(s.dir, "data")
	testenv.NoError(t, os.Mkdir(data, 0o755))
	testenv.NoError(t, unix.Mount("coracle-test", data, "tmpfs", unix.MS_NOEXEC, "size=1m,mode=755"))
	t.Cleanup(func() { testenv.NoError(t, unix.Unmount(data, unix.MNT_DETACH)) })
	out, err := s.install(s.program("two"), "")
	testenv.True(t, err != nil && strings.Contains(out, "noexec"), "%v: %s", err, out)
	text, err := exec.Command(filepath.Join(s.dir, "bin/coracle"), "version").CombinedOutput()
	testenv.True(t, err == nil && string(text) == "coracle one\n", "%v: %s", err, text)
}

// TestFullDiskChangesNothing: a program that could not be written whole is not installed.
func TestFullDiskChangesNothing(t *testing.T) {
	s := newSlots(t)
	s.mustInstall(s.program("one"), "server")
	two := s.program("two")
	out, err := s.run("ulimit -f 0; main", "INSTALL_CORACLE_BINARY="+two, "INSTALL_CORACLE_SHA256=skip", "INSTALL_CORACLE_SYMLINK=force")
	testenv.True(t, err != nil && strings.Contains(out, "could not be written"), "%v: %s", err, out)
	testenv.Equal(t, s.versions(), "one - -", "versions:")
	left := testenv.Must(filepath.Glob(filepath.Join(s.dir, "data/versions/*/*")))(t)
	testenv.False(t, slices.ContainsFunc(left, func(name string) bool { return strings.HasSuffix(name, ".new") }), "left: %q", left)
	s.mustInstall(two, "")
	testenv.Equal(t, s.versions(), "two one -", "versions:")
}

// TestVersionsThatOthersMayChange are not run.
func TestVersionsThatOthersMayChange(t *testing.T) {
	s := newSlots(t)
	testenv.NoError(t, os.MkdirAll(filepath.Join(s.dir, "data"), 0o755))
	testenv.NoError(t, os.Chmod(filepath.Join(s.dir, "data"), 0o777))
	out, err := s.install(s.program("one"), "server")
	testenv.True(t, err != nil && strings.Contains(out, "every user of this machine may change") && strings.Contains(out, "--data-dir"),
		"%v: %s", err, out)
	testenv.NoError(t, os.Chmod(filepath.Join(s.dir, "data"), 0o700))
	testenv.Contains(t, s.mustInstall(s.program("one"), "server"), "warning: only root can use coracle", "a closed folder:")
}

// TestInstallersRunOneByOne: two at once would write the same files. A service that the first one starts keeps no lock.
func TestInstallersRunOneByOne(t *testing.T) {
	s := newSlots(t)
	other := testenv.Must(os.OpenFile(s.dir+".lock", os.O_CREATE|os.O_RDWR, 0o600))(t)
	defer other.Close()
	testenv.NoError(t, unix.Flock(int(other.Fd()), unix.LOCK_EX))
	out, err := s.install(s.program("one"), "server")
	testenv.True(t, err != nil && strings.Contains(out, "another run of install.sh goes on"), "%v: %s", err, out)
	testenv.ErrorIs(t, testenv.Err(os.Stat(filepath.Join(s.dir, "data"))), fs.ErrNotExist)
	testenv.NoError(t, unix.Flock(int(other.Fd()), unix.LOCK_UN))
	unlock := testenv.Must(slots.Below(filepath.Join(s.dir, "data")).Lock())(t)
	out, err = s.install(s.program("one"), "server")
	testenv.True(t, err != nil && strings.Contains(out, "another upgrade of this machine is going on"), "%v: %s", err, out)
	unlock()
	s.text += `start_service() { sleep 60 >/dev/null 2>&1 & echo $! >"$etc/service"; }` + "\n"
	s.mustInstall(s.program("one"), "server")
	s.must(`kill -0 "$(cat "$etc/service")"`)
	testenv.NoError(t, unix.Flock(int(other.Fd()), unix.LOCK_EX|unix.LOCK_NB))
	testenv.Must(slots.Below(filepath.Join(s.dir, "data")).Lock())(t)()
	testenv.NoError(t, unix.Flock(int(other.Fd()), unix.LOCK_UN))
	s.must(`kill "$(cat "$etc/service")"`)
}
