// SPDX-License-Identifier: Apache-2.0

package install

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// script is the installer without its last line, which installs, with its files in a folder of the test.
type script struct {
	*testing.T
	dir, text string
}

func newScript(t *testing.T) *script {
	t.Helper()
	b := testenv.Must(os.ReadFile("../../install.sh"))(t)
	text, ok := strings.CutSuffix(string(b), "main \"$@\"\n")
	testenv.Require(t, ok, "install.sh does not end with main")
	s := &script{T: t, dir: t.TempDir()}
	s.text = text + fmt.Sprintf("etc=%s changed=\nenv_file=$etc/service.env args_file=$etc/service.args unit_file=$etc/unit pods_unit_file=$etc/pods-unit openrc_file=$etc/init versions=$etc/versions lock_file=$etc.lock\n", s.dir)
	return s
}

// run runs commands after the script's functions, as the user of the test with sudo.
func (s *script) run(commands string, env ...string) (string, error) {
	s.Helper()
	cmd := exec.CommandContext(s.Context(), "sh", "-c", s.text+commands, filepath.Join(s.dir, "install.sh"))
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "SUDO_UID=" + strconv.Itoa(os.Getuid()), "SUDO_GID=" + strconv.Itoa(os.Getgid())}, env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (s *script) must(commands string, env ...string) {
	s.Helper()
	if out, err := s.run(commands, env...); err != nil {
		s.Fatalf("%v:\n%s", err, out)
	}
}

// has wants a file of the test's folder with a mode and content.
func (s *script) has(name string, mode fs.FileMode, lines ...string) {
	s.Helper()
	path := filepath.Join(s.dir, name)
	info := testenv.Must(os.Stat(path))(s)
	testenv.False(s, info.Mode().Perm() != mode, "%s has mode %v, want %v", name, info.Mode(), mode)
	got, err := os.ReadFile(path)
	if want := strings.Join(lines, "\n") + "\n"; err != nil || lines != nil && string(got) != want {
		s.Errorf("%s has %q (%v), want %q", name, got, err, want)
	}
}

// TestSecretsAreMoved: tokens and keys that stand among the arguments are in service.env, which root alone reads, and
// in no unit; those of an earlier installation, too.
func TestSecretsAreMoved(t *testing.T) {
	s := newScript(t)
	s.must(`save_settings agent --server https://a:6443 --token 'a$b' --node-name=x; write_systemd; write_openrc`)
	s.has("service.args", 0o600, "agent", "--server", "https://a:6443", "--node-name=x")
	s.has("service.env", 0o600, `CORACLE_TOKEN="a\$b"`)
	s.has("unit", 0o600)
	s.has("init", 0o700)
	for _, name := range []string{"unit", "init"} {
		if b, err := os.ReadFile(filepath.Join(s.dir, name)); err != nil || strings.Contains(string(b), "a$") || !strings.Contains(string(b), "node-name") {
			t.Errorf("%s: %v\n%s", name, err, b)
		}
	}

	s = newScript(t)
	testenv.NoError(t, os.WriteFile(filepath.Join(s.dir, "service.args"), []byte("server\n-t\none\n--agent-token=two\n--snapshot-s3-secret-key\nthree\n--tls-san\nx y\n"), 0o600))
	out, err := s.run("save_settings")
	testenv.False(t, err != nil || strings.Contains(out, "two"), "%v: %s", err, out)
	s.has("service.args", 0o600, "server", "--tls-san", "x y")
	s.has("service.env", 0o600, `CORACLE_AGENT_TOKEN="two"`, `CORACLE_SNAPSHOT_S3_SECRET_KEY="three"`, `CORACLE_TOKEN="one"`)
	s.must("save_settings")
	s.has("service.env", 0o600, `CORACLE_AGENT_TOKEN="two"`, `CORACLE_SNAPSHOT_S3_SECRET_KEY="three"`, `CORACLE_TOKEN="one"`)
	s.must("save_settings server --token-file /etc/token")
	s.has("service.args", 0o600, "server", "--token-file", "/etc/token")
	s.has("service.env", 0o600, `CORACLE_AGENT_TOKEN="two"`, `CORACLE_SNAPSHOT_S3_SECRET_KEY="three"`)
	if out, err := s.run("save_settings server --token"); err == nil || !strings.Contains(out, "--token needs a value") {
		t.Errorf("%v: %s", err, out)
	}
}

// TestOnlyWholePackedReleaseIsInstalled: a release packed by xz is checked as it came, and only a whole one is
// installed. Nothing else stays.
func TestOnlyWholePackedReleaseIsInstalled(t *testing.T) {
	const program = "#!/bin/sh\necho coracle v7\n"
	for _, tt := range []struct{ name, before, want string }{
		{"whole", "", ""},
		{"damaged", `printf x >>coracle-linux-amd64.xz`, "is not what was released"},
		{"cut off", `truncate -s 40 coracle-linux-amd64.xz; INSTALL_CORACLE_SHA256=skip`, "could not be unpacked"},
		{"full disk", `ulimit -f 0`, "could not be unpacked"},
		{"no xz", `command() { return 1; }`, "xz is missing"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newScript(t)
			testenv.NoError(t, os.WriteFile(filepath.Join(s.dir, "coracle-linux-amd64"), []byte(program), 0o755))
			out, err := s.run(`cd "$etc"; here=$etc bin_dir=$etc/bin arch=amd64
xz coracle-linux-amd64; sha256sum coracle-linux-amd64.xz >sha256sums.txt
` + tt.before + `
find_binary; mkdir "$versions"; stage "$binary"; link current "$digest"; link_program; echo "is $version"`)
			if tt.want == "" {
				testenv.NoError(t, err, "%s", out)
				testenv.Contains(t, out, "is v7", "the installer does not say the version")
				s.has("bin/coracle", 0o755, strings.Split(strings.TrimSpace(program), "\n")...)
				s.must(`here=$etc bin_dir=$etc/bin arch=amd64; ulimit -f 0
find_binary; stage "$binary"`) // it writes nothing
				return
			}
			testenv.False(t, err == nil || !strings.Contains(out, tt.want), "%v: %s, want %q", err, out, tt.want)
			left := testenv.Must(filepath.Glob(filepath.Join(s.dir, "bin/*")))(t)
			testenv.Equal(t, len(left), 0, "there is %v, installed files are", left)
		})
	}
}

// TestInstallerRefusesFoldersOthersMayChange: nothing is installed from a folder whose content others may change.
func TestInstallerRefusesFoldersOthersMayChange(t *testing.T) {
	s := newScript(t)
	for _, c := range []struct {
		name          string
		parent, inner fs.FileMode
		want          string
	}{
		{"as git and tar make it", 0o755, 0o755, ""},
		{"of a group of one", 0o755, 0o775, ""},
		{"open to all", 0o755, 0o777, "every user"},
		{"like /tmp", 0o755, 0o777 | fs.ModeSticky, "every user"},
		{"in one that is open to all", 0o777, 0o755, "every user"},
		{"in one like /tmp", 0o777 | fs.ModeSticky, 0o755, ""},
	} {
		parent := filepath.Join(s.dir, strings.ReplaceAll(strings.ReplaceAll(c.name, " ", "-"), "/", ""))
		inner := filepath.Join(parent, "inner")
		testenv.NoError(t, os.MkdirAll(inner, 0o755))
		for dir, mode := range map[string]fs.FileMode{parent: c.parent, inner: c.inner} {
			testenv.NoError(t, os.Chmod(dir, mode))
		}
		out, err := s.run("trust " + inner)
		testenv.False(t, (err == nil) != (c.want == "") || !strings.Contains(out, c.want), "%s: %v: %q, want %q", c.name, err, out, c.want)
	}
	for mode, ok := range map[fs.FileMode]bool{0o755: true, 0o757: false} { // in a folder of one's own
		program, link := filepath.Join(s.dir, fmt.Sprintf("program%o", mode)), filepath.Join(s.dir, fmt.Sprintf("link%o", mode))
		testenv.NoError(t, errors.Join(os.WriteFile(program, nil, 0o755), os.Chmod(program, mode), os.Symlink(program, link)))
		for _, path := range []string{program, link} {
			if out, err := s.run("trust " + path); (err == nil) != ok {
				t.Errorf("a program with mode %o, %s: %v: %s", mode, path, err, out)
			}
		}
	}
	if os.Getuid() == 0 {
		other := filepath.Join(s.dir, "other")
		testenv.NoError(t, os.Mkdir(other, 0o755))
		testenv.NoError(t, os.Chown(other, 1234, 1234))
		if out, err := s.run("trust " + other); err == nil || !strings.Contains(out, "user 1234") {
			t.Errorf("another user's folder: %v: %s", err, out)
		}
		if out, err := s.run("trust "+other, "SUDO_UID=1234"); err != nil {
			t.Errorf("one's own folder with sudo: %v: %s", err, out)
		}
	}
}

// TestTrustOfContents: nothing is built in a clone of which others may change a part, and no sums are believed that
// others may change.
func TestTrustOfContents(t *testing.T) {
	s := newScript(t)
	clone := filepath.Join(s.dir, "clone")
	modes := map[string]fs.FileMode{"Makefile": 0o644, "packaging": 0o755, "packaging/deps.sh": 0o755, "cmd/coracle/main.go": 0o644, "sha256sums.txt": 0o644}
	testenv.NoError(t, errors.Join(os.MkdirAll(filepath.Join(clone, "packaging"), 0o755), os.MkdirAll(filepath.Join(clone, "cmd/coracle"), 0o755), os.Symlink("Makefile", filepath.Join(clone, "link"))))
	for name, mode := range modes {
		if path := filepath.Join(clone, name); name != "packaging" {
			testenv.NoError(t, errors.Join(os.WriteFile(path, nil, mode), os.Chmod(path, mode)))
		}
	}
	for name, mode := range modes {
		path := filepath.Join(clone, name)
		for _, open := range []fs.FileMode{0, 0o020, 0o002} { // of a group of one, too
			testenv.NoError(t, os.Chmod(path, mode|open))
			if out, err := s.run("trust_all " + clone); (err == nil) != (open != 0o002) || err != nil && !strings.Contains(out, "every user of this machine may change what lies in "+path) {
				t.Errorf("%s with mode %o: %v: %s", name, mode|open, err, out)
			}
		}
		testenv.NoError(t, os.Chmod(path, mode))
		if os.Getuid() == 0 {
			testenv.NoError(t, os.Chown(path, 1234, 0))
			if out, err := s.run("trust_all " + clone); err == nil || !strings.Contains(out, "user 1234") {
				t.Errorf("%s of another user: %v: %s", name, err, out)
			}
			testenv.NoError(t, os.Chown(path, 0, 0))
		}
	}
	sums := filepath.Join(clone, "sha256sums.txt")
	testenv.NoError(t, os.Chmod(sums, 0o646))
	if out, err := s.run("check_sum " + filepath.Join(clone, "coracle")); err == nil || !strings.Contains(out, "may change what lies in "+sums) {
		t.Errorf("sums that others may change: %v: %s", err, out)
	}
	testenv.Contains(t, s.text, "    trust_all \"$here\"\n    build\n", "install.sh builds in a clone without a check of all that it holds:")
}

// TestLogOfTheConfiguration: services whose log no other program rotates name a file for it, unless the configuration
// names one.
func TestLogOfTheConfiguration(t *testing.T) {
	s := newScript(t)
	s.must(`save_settings server; write_openrc; service_script >"$etc/service"`)
	folder := filepath.Join(s.dir, "config.yaml.d")
	testenv.NoError(t, os.Mkdir(folder, 0o755))
	for _, c := range []struct{ file, text, want string }{
		{"config.yaml", "log-format: json\n", "/var/log/coracle.log"},
		{"config.yaml", "log: /other.log\n", ""},
		{"config.yaml.d/10-log.yaml", "debug: true\nlog: /other.log\n", ""},
		{"service.env", "CORACLE_LOG=\"/third.log\"\n", "/third.log"},
	} {
		path := filepath.Join(s.dir, c.file)
		testenv.NoError(t, os.WriteFile(path, []byte(c.text), 0o644))
		for name, script := range map[string]string{
			"init":    `. "$0"`,
			"service": `eval "$(sed -n '/^[a-z_]*=/p; /^  set -a/,/^  set +a/p' "$0")"`,
		} {
			out, err := exec.CommandContext(t.Context(), "sh", "-c", script+"\necho \"[$CORACLE_LOG]\"", filepath.Join(s.dir, name)).CombinedOutput()
			if got := strings.TrimSpace(string(out)); err != nil || got != "["+c.want+"]" {
				t.Errorf("%s with %q in %s: %v, %s, want %q", name, c.text, c.file, err, got, c.want)
			}
		}
		testenv.NoError(t, os.Remove(path))
	}
}

// TestCrashWritesNoCoreFile: a crash writes no keys to the disk, whatever starts the service, and a log that no other
// program rotates is bounded by the program.
func TestCrashWritesNoCoreFile(t *testing.T) {
	s := newScript(t)
	s.must(`save_settings server; write_systemd; write_openrc; service_script >"$etc/service"`)
	for name, want := range map[string][]string{
		"unit":    {"\nLimitCORE=0:infinity\n"},
		"init":    {"\nulimit -S -c 0", ": \"${CORACLE_LOG:=/var/log/coracle.log}\""},
		"service": {"\n  ulimit -S -c 0", ": \"${CORACLE_LOG:=$log}\""},
	} {
		b := testenv.Must(os.ReadFile(filepath.Join(s.dir, name)))(t)
		for _, w := range want {
			testenv.True(t, strings.Contains(string(b), w), "%s lacks %q:\n%s", name, w, b)
		}
	}
}

// TestStalledServiceIsKilled, whatever starts it: otherwise nothing starts it again, be it with another version.
func TestStalledServiceIsKilled(t *testing.T) {
	s := newScript(t)
	run := filepath.Join(s.dir, "coracle-service")
	s.must(`bin_dir=$etc; save_settings server; write_openrc; service_script |
		sed "s|=/run/|=$etc/|; s|^log=.*|log=$etc/log|; s/^stop_seconds=90/stop_seconds=1/" >"$etc/coracle-service"; chmod 755 "$etc/coracle-service"`)
	testenv.Contains(t, string(testenv.Must(os.ReadFile(filepath.Join(s.dir, "init")))(t)), "\nretry=\"TERM/90/KILL/5\"\n", "OpenRC:")
	stalled := "#!/bin/sh\ntrap '' TERM\necho $$ >" + s.dir + "/pid\nwhile :; do sleep 1; done\n"
	testenv.NoError(t, os.WriteFile(filepath.Join(s.dir, "coracle-start"), []byte(stalled), 0o755))
	pid := ""
	t.Cleanup(func() {
		if n, err := strconv.Atoi(pid); err == nil {
			_ = syscall.Kill(n, syscall.SIGKILL)
		}
	})
	for range 2 { // it can be started again
		testenv.NoError(t, exec.CommandContext(t.Context(), run, "start").Run())
		testenv.Until(t, time.Minute, "the service starts", func() bool {
			b, _ := os.ReadFile(filepath.Join(s.dir, "pid"))
			pid = strings.TrimSpace(string(b))
			return pid != ""
		})
		out, err := exec.CommandContext(t.Context(), run, "stop").CombinedOutput()
		testenv.Require(t, err == nil, "%v: %s", err, out)
		n := testenv.Must(strconv.Atoi(pid))(t)
		testenv.ErrorIs(t, syscall.Kill(n, 0), syscall.ESRCH)
		testenv.NoError(t, os.Remove(filepath.Join(s.dir, "pid")))
	}
}

// TestOwnKubectlIsLedToTheCluster: a machine may have a kubectl of its own, which the installer leaves alone. Without a
// kubeconfig it asks localhost:8080.
func TestOwnKubectlIsLedToTheCluster(t *testing.T) {
	s := newScript(t)
	own := t.TempDir()
	testenv.NoError(t, os.WriteFile(filepath.Join(own, "kubectl"), []byte("#!/bin/sh\n"), 0o755))
	path := "PATH=" + own + ":" + os.Getenv("PATH")
	testenv.NoError(t, os.WriteFile(filepath.Join(s.dir, "service.args"), []byte("server\n"), 0o600))
	last := func(commands string, env ...string) string {
		out := testenv.Must(s.run(commands, env...))(t)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		return strings.TrimSpace(lines[len(lines)-1])
	}
	next := "kubeconfig=/d/admin.kubeconfig bin_dir=" + s.dir + "; next_steps"
	testenv.Equal(t, last(next, path), "export KUBECONFIG=/d/admin.kubeconfig", "where the administrator's kubeconfig is elsewhere:")
	testenv.NoError(t, os.WriteFile(filepath.Join(s.dir, "coracle.yaml"), nil, 0o600))
	testenv.Equal(t, last(next, path), "export KUBECONFIG="+s.dir+"/coracle.yaml", "the last line:")
	testenv.NoError(t, os.Symlink("coracle", filepath.Join(s.dir, "kubectl")))
	testenv.False(t, strings.Contains(last(next, path), "KUBECONFIG"), "kubectl is coracle's: %s", last(next, path))
}

// TestVariablesOfK3sAreRefused: they would have no effect, and a node that was to join would start a cluster of its
// own.
func TestVariablesOfK3sAreRefused(t *testing.T) {
	s := newScript(t)
	s.must("refuse_k3s", "K3S_TOKEN=", "CORACLE_TOKEN=x", "MY_K3S_URL=x")
	for variable, want := range map[string]string{
		"K3S_URL": "CORACLE_URL here", "K3S_KUBECONFIG_MODE": "CORACLE_WRITE_KUBECONFIG_MODE here", "K3S_KUBECONFIG_OUTPUT": "CORACLE_WRITE_KUBECONFIG here",
		"INSTALL_K3S_EXEC": "INSTALL_CORACLE_EXEC here", "INSTALL_K3S_VERSION": "no such setting", "K3S_SELINUX": "no such setting",
	} {
		out, err := s.run("refuse_k3s", variable+"=x")
		testenv.True(t, err != nil && strings.Contains(out, variable+": ") && strings.Contains(out, want), "%s: %v\n%s", variable, err, out)
	}
}

// TestInstallerSaysWhyTheServiceEnds: what a service that does not stay up complains of stands in the error, below the
// lines of its log.
func TestInstallerSaysWhyTheServiceEnds(t *testing.T) {
	s := newScript(t)
	const said = `joining the cluster at 10.0.0.5:6443: "node-1" is a name of the server's`
	log := "ERROR coracle stops because of an error\ncoracle: an earlier one\ncoracle: " + said + "\ncoracle-service: coracle ended with code 1; starting it again\n"
	testenv.NoError(t, os.WriteFile(filepath.Join(s.dir, "log"), []byte(log), 0o600))
	out, err := s.run(`service=none log_file=$etc/log; restarts() { echo 3; }; wait_ready`)
	testenv.Fails(t, err, "a service that ends again and again is no error")
	testenv.Contains(t, out, "started again 3 times. It says:\n"+said+"\n", "the error does not say why:")
}
