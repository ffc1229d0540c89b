//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package upgrade

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/internal/slots"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// Folders of the disk that forgets, and where a machine has them. Of the data directory, folders with other things than
// versions are on a disk that does not: test/powercut and test/nodepower cut the power of these.
var (
	forgetting = map[string]string{"data": "/var/lib/coracle", "bin": "/usr/local/bin", "etc": "/etc/coracle"}
	keeping    = []string{"server", "agent", "manifests", "charts", "images", "bin", "storage"}
)

// mostWithout is how long after a boot a whole version runs at the latest.
const mostWithout = time.Minute

// powered is a machine on which install.sh has installed coracle, on a disk that forgets.
type powered struct {
	*harness.Machine
	t    *testing.T
	disk *forgetful
	node string
	env  []string
	// kubectl asks the cluster.
	kubectl func(args ...string) (string, error)
	booted  time.Time
}

// newPowered makes a machine with an empty disk.
func newPowered(t *testing.T, m *harness.Machine) *powered {
	t.Helper()
	m.Env = append(m.Env, "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	r := &powered{Machine: m, t: t, disk: newForgetful(), node: fmt.Sprintf("board%d", m.Number)}
	r.kubectl = func(args ...string) (string, error) { // by the host's copy of the program
		return r.Run(r.Coracle(), append([]string{"kubectl", "--kubeconfig", "/var/lib/coracle/server/cred/admin.kubeconfig"}, args...)...)
	}
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := r.Run("tail", "-n", "80", "/var/log/coracle.log") // the log of a failed test
			t.Log(out)
		}
		r.disk.cut()
	})
	r.mount()
	return r
}

// newPoweredServer is a machine with a server that runs, installed with variables of the environment.
func newPoweredServer(t *testing.T, env ...string) *powered {
	t.Helper()
	r := newPowered(t, harness.NewMachine(t))
	r.env = env
	out, err := r.install(r.Coracle(), "server", "--node-name", r.node, "--node-ip", r.IP)
	testenv.NoError(t, err, "%s", out)
	r.awaitVersion()
	return r
}

// mount mounts the disk.
func (r *powered) mount() {
	r.t.Helper()
	for folder, point := range forgetting {
		r.must("mkdir", "-p", point)
		r.disk.mountOn(r.Machine, folder, point)
	}
	for _, name := range keeping {
		kept := filepath.Join(r.Dir, "kept", name)
		testenv.NoError(r.t, os.MkdirAll(kept, 0o755))
		r.disk.folder("data/" + name)
		r.must("mount", "--bind", kept, "/var/lib/coracle/"+name)
	}
}

func (r *powered) must(name string, args ...string) string {
	r.t.Helper()
	out, err := r.Run(name, args...)
	testenv.NoError(r.t, err, "%s", out)
	return strings.TrimSpace(out)
}

// install runs install.sh with a program and with arguments, and returns what it printed.
func (r *powered) install(program string, args ...string) (string, error) {
	r.t.Helper()
	script := filepath.Join(r.Dir, "install.sh")
	testenv.NoError(r.t, os.WriteFile(script, testenv.Must(os.ReadFile("../../install.sh"))(r.t), 0o755))
	c := r.Command(context.Background(), script, args...)
	c.Env = append(c.Env, "INSTALL_CORACLE_SERVICE=none", "INSTALL_CORACLE_SYMLINK=force", "INSTALL_CORACLE_SHA256=skip",
		"INSTALL_CORACLE_BINARY="+program, "CORACLE_TRIAL_SOAK=0s", slots.TrialEnv+"=60")
	c.Env = append(c.Env, r.env...)
	out, err := c.CombinedOutput()
	return string(out), err
}

// boot switches the machine on after a loss of power, and starts the service as an init does.
func (r *powered) boot() {
	r.t.Helper()
	r.disk.start()
	r.PowerOn()
	r.mount()
	r.booted = time.Now()
	r.must("coracle-service", "start")
}

// runs returns the digest of the version that runs and answers: of a server the API and the node, of an agent the node.
// That of an old installation is that of its plain file.
func (r *powered) runs() (digest string, err error) {
	exe, err := r.Run("sh", "-c", "readlink /proc/$(cat /run/coracle/coracle.pid)/exe")
	if err != nil {
		return "", err
	}
	exe = strings.TrimSpace(exe)
	file := "bin/coracle"
	if exe != "/usr/local/bin/coracle" {
		digest = path.Base(path.Dir(exe))
		file = "data/versions/" + digest + "/coracle"
	}
	sum := sha256.Sum256([]byte(r.disk.read(file)))
	whole := hex.EncodeToString(sum[:])
	if digest != "" && whole != digest {
		r.t.Errorf("%s runs, whose SHA-256 is %s", exe, whole)
	}
	if _, err := r.kubectl("get", "--raw", "/readyz"); err != nil {
		return "", err
	}
	status, err := r.Run("sh", "-c", r.Coracle()+" status -o json || true") // its code says whether anything is in trouble
	if err == nil && !strings.Contains(status, `"ready": "2`) {
		err = errors.New("coracle is not ready")
	}
	if err != nil {
		return "", err
	}
	ready, err := r.kubectl("get", "node", r.node, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
	if err == nil && ready != "True" {
		err = fmt.Errorf("the node is Ready: %s", ready)
	}
	return whole, err
}

// awaitVersion waits until a whole version runs, and returns its digest.
func (r *powered) awaitVersion() (digest string) {
	r.t.Helper()
	harness.Eventually(r.t, mostWithout, "one whole version runs", func() (err error) {
		digest, err = r.runs()
		return err
	})
	return digest
}

// candidate returns a program that is like another one but for its end, and its digest.
func (r *powered) candidate(name, program, end string) (file, digest string) {
	r.t.Helper()
	file = filepath.Join(r.Dir, name)
	testenv.NoError(r.t, exec.Command("cp", program, file).Run())
	f := testenv.Must(os.OpenFile(file, os.O_WRONLY|os.O_APPEND, 0))(r.t)
	testenv.Must(f.WriteString(name + end))(r.t)
	testenv.NoError(r.t, f.Close())
	return file, testenv.Must(slots.Digest(file))(r.t)
}

var (
	someDigest = regexp.MustCompile(`[0-9a-f]{64}`)
	beside     = regexp.MustCompile(`(versions/(CURRENT|CANDIDATE|PREVIOUS)|snapshots)/[^ ]+`)
	counted    = regexp.MustCompile(`\.tmp[0-9]+`)
)

// stepper returns a function that names the calls of one run, each by its text and by how often that came. It returns
// "" for a call that has nothing to do with which version runs, or that is one more of a kind: writes of a program, and
// files beside it.
func stepper(current, candidate string) func(call string) string {
	count := map[string]int{}
	return func(call string) string {
		call = strings.NewReplacer(current, "CURRENT", candidate, "CANDIDATE", "data/", "").Replace(call)
		call = counted.ReplaceAllString(someDigest.ReplaceAllString(call, "PREVIOUS"), ".tmp")
		call = beside.ReplaceAllStringFunc(call, func(path string) string {
			if name := filepath.Base(path); name == "coracle" || name == "coracle.new" {
				return path
			}
			return beside.FindStringSubmatch(path)[1] + "/…"
		})
		other := call != "sync data" && !strings.Contains(call, "versions") && !strings.Contains(call, " bin") ||
			strings.Contains(call, "CURRENT/…") // copies of the kubelet's files: an agent has more of them
		beside := strings.Contains(call, "…") || call == "sync versions/CANDIDATE"
		if count[call]++; other || count[call] > 1 && (beside || strings.HasPrefix(call, "write ") && strings.Contains(call, "/coracle")) {
			return ""
		}
		if count[call] > 1 {
			call += fmt.Sprintf(" (%d)", count[call])
		}
		return call
	}
}

// end is how a run of a command ended.
type end struct {
	steps  []string // each once, in order
	lost   bool     // the power was lost
	output string
	err    error
}

// until makes a run of a scenario, and cuts the power after a step, if it comes. at may be "".
func (r *powered) until(at string, s scenario) end {
	r.t.Helper()
	var e end
	name := stepper(s.current, s.other)
	r.disk.mu.Lock()
	off := r.disk.off
	r.disk.after = func(call string, _ uint32) bool {
		step := name(call)
		if step != "" {
			e.steps = append(e.steps, step)
		}
		return step != "" && step == at
	}
	r.disk.mu.Unlock()
	ended := make(chan struct{})
	go func() { e.output, e.err = s.do(); close(ended) }()
	for e.lost = false; ; {
		select {
		case <-off:
			e.lost = true
			r.PowerOff()
			<-ended
		case <-ended:
			if e.err == nil && !s.done() {
				select {
				case <-off:
				case <-time.After(100 * time.Millisecond): // the version before writes what became of the other
				}
				continue
			}
		}
		break
	}
	r.disk.mu.Lock()
	defer r.disk.mu.Unlock()
	r.disk.after = nil
	e.steps = slices.Clone(e.steps)
	return e
}

// settled waits until no version is on trial, and returns the version that runs then.
func (r *powered) settled() string {
	r.t.Helper()
	harness.Eventually(r.t, 2*time.Minute, "the trial ends", func() error {
		if d := r.disk.read("data/versions/trial"); d != "" {
			return fmt.Errorf("%s is on trial", d)
		}
		return nil
	})
	return r.awaitVersion()
}

// committedSteps are all calls of an upgrade that is committed and change something among the versions, as stepper
// names them.
var committedSteps = strings.Split(`unlink versions/previous
sync versions
unlink versions/PREVIOUS/coracle
rmdir versions/PREVIOUS
mkdir versions/CANDIDATE.new
chmod versions/CANDIDATE.new
create versions/CANDIDATE.new/coracle
write versions/CANDIDATE.new/coracle
chmod versions/CANDIDATE.new/coracle
sync versions/CANDIDATE.new/coracle
sync versions/CANDIDATE.new
rename versions/CANDIDATE.new versions/CANDIDATE
sync versions (2)
sync versions/CURRENT
mkdir versions/CANDIDATE/…
sync versions/CANDIDATE/…
sync versions/CANDIDATE
create versions/CANDIDATE/…
write versions/CANDIDATE/…
chmod versions/CANDIDATE/…
rename versions/CANDIDATE/… versions/CANDIDATE/…
truncate versions/tries
sync versions/tries
symlink versions/trial.new
rename versions/trial.new versions/trial
sync versions (3)
write versions/tries
sync versions/tries (2)
symlink versions/previous.new
rename versions/previous.new versions/previous
sync versions (4)
rename versions/trial versions/current
sync versions (5)`, "\n")

// refusedSteps are those of one that is refused, since it ends at once: those after the links, which are the same.
var refusedSteps = strings.Split(`sync versions (3)
write versions/tries
sync versions/tries (2)
write versions/tries (2)
sync versions/tries (3)
write versions/tries (3)
sync versions/tries (4)
unlink versions/trial
sync versions (4)
create versions/refused.new
write versions/refused.new
sync versions/refused.new
rename versions/refused.new versions/refused
sync versions (5)
create versions/.refused.tmp
write versions/.refused.tmp
chmod versions/.refused.tmp
sync versions/.refused.tmp
rename versions/.refused.tmp versions/refused
sync versions (6)
unlink versions/CANDIDATE/…
unlink versions/CANDIDATE/coracle
rmdir versions/CANDIDATE/…
rmdir versions/CANDIDATE`, "\n")

// movedSteps are those of install.sh on an installation of before there were slots.
var movedSteps = strings.Split(`mkdir versions
sync data
create versions/lock
mkdir versions/CURRENT
create versions/CURRENT/coracle.new
write versions/CURRENT/coracle.new
chmod versions/CURRENT/coracle.new
sync versions/CURRENT/coracle.new
rename versions/CURRENT/coracle.new versions/CURRENT/coracle
sync versions/CURRENT
sync versions
mkdir versions/CANDIDATE
create versions/CANDIDATE/coracle.new
write versions/CANDIDATE/coracle.new
chmod versions/CANDIDATE/coracle.new
sync versions/CANDIDATE/coracle.new
rename versions/CANDIDATE/coracle.new versions/CANDIDATE/coracle
sync versions/CANDIDATE
sync versions (2)
symlink versions/previous.new
rename versions/previous.new versions/previous
sync versions (3)
symlink versions/current.new
rename versions/current.new versions/current
sync versions (4)
create bin/coracle-start.new
write bin/coracle-start.new
chmod bin/coracle-start.new
sync bin/coracle-start.new
rename bin/coracle-start.new bin/coracle-start
sync bin
create versions/restart.new
write versions/restart.new
chmod versions/restart.new
sync versions/restart.new
rename versions/restart.new versions/restart
sync versions (5)
create bin/coracle-service.new
write bin/coracle-service.new
chmod bin/coracle-service.new
sync bin/coracle-service.new
rename bin/coracle-service.new bin/coracle-service
sync bin (2)
symlink bin/coracle.link
rename bin/coracle.link bin/coracle
sync bin (3)`, "\n")

// scenario is what runs while the power is cut.
type scenario struct {
	name           string
	current, other string // digests of the version that runs before, and of the one that may run afterwards
	do             func() (string, error)
	done           func() bool
	goesBack       bool
	before         *inode // the disk before each run
}

// cutEach makes a run, which has to end with these steps. For each it makes the run again, cuts the power after that
// step, and boots. One whole version runs then, and after the end of a trial.
func (r *powered) cutEach(s scenario, steps []string, l loss) {
	outer := r.t
	r.t.Run(s.name, func(t *testing.T) {
		r.t = t
		defer func() { r.t = outer }()
		s.before = r.disk.saved()
		began := time.Now()
		e := r.until("", s)
		testenv.NoError(t, e.err, "%s", e.output)
		t.Logf("%s", e.output)
		want := map[bool]string{false: s.other, true: s.current}[s.goesBack]
		testenv.Equal(t, r.settled(), want, "without a loss of power, there runs")
		t.Logf("the steps:\n%s", strings.Join(e.steps, "\n"))
		last := e.steps[max(0, len(e.steps)-len(steps)):]
		testenv.Check(t, harness.Exactly(strings.Join(steps, "\n"))(strings.Join(last, "\n"), nil), "the steps have changed")
		names := map[string]string{s.current: "CURRENT", s.other: "CANDIDATE"}
		defer func() { t.Logf("%d losses of power, %.0f s", len(steps), time.Since(began).Seconds()) }()
		for _, at := range steps {
			r.reset(s)
			e := r.until(at, s)
			if !e.lost {
				t.Errorf("there was no step %q: %v\n%s\n%s", at, e.err, e.output, strings.Join(e.steps, "\n"))
				continue
			}
			r.disk.lose(l)
			r.boot()
			first := r.awaitVersion()
			took := time.Since(r.booted)
			onTrial := ""
			if r.disk.read("data/versions/trial") != "" {
				onTrial = fmt.Sprintf(", on trial, start %d", len(r.disk.read("data/versions/tries")))
			}
			last := r.settled()
			t.Logf("%-72s %s after %.1f s%s; in the end %s", at, names[first], took.Seconds(), onTrial, names[last])
			testenv.True(t, names[first] != "" && names[last] != "", "after %q, %s ran, and then %s", at, first, last)
		}
	})
}

// reset makes the machine what it was before a run, and waits until that works.
func (r *powered) reset(s scenario) {
	r.t.Helper()
	r.disk.mu.Lock()
	same := true
	for _, folder := range []string{"bin", "data/versions"} {
		now, before := r.disk.at(folder), inodeAt(s.before, folder)
		same = same && (now == before || now != nil && before != nil && equal(now, before))
	}
	r.disk.mu.Unlock()
	if !same {
		r.disk.cut()
		r.PowerOff()
		r.disk.restore(s.before)
		r.boot()
	}
	testenv.Equal(r.t, r.awaitVersion(), s.current, "before the run, there runs")
}

// equal says whether two folders have the same in them.
func equal(a, b *inode) bool {
	if a.mode != b.mode || a.target != b.target || !bytes.Equal(a.data, b.data) || len(a.names) != len(b.names) {
		return false
	}
	for name, child := range a.names {
		if b.names[name] == nil || !equal(child, b.names[name]) {
			return false
		}
	}
	return true
}

// upgrade is a scenario of coracle upgrade --here.
func (r *powered) upgrade(name, program, end string) scenario {
	r.t.Helper()
	file, digest := r.candidate(name, program, end)
	return scenario{name: name, current: r.disk.read("data/versions/current"), other: digest, goesBack: end != "",
		do: func() (string, error) {
			out, err := r.Run("sh", "-c", "exec coracle upgrade --here "+file+" 2>&1")
			if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == 3 && end != "" {
				err = nil
			}
			return out, err
		},
		done: func() bool {
			refused := r.disk.read("data/versions/refused")
			return refused == "" || strings.HasSuffix(refused, "\nreported\n") && !slices.Contains(r.disk.list("data/versions"), digest)
		}}
}

// move is a scenario of install.sh on an installation of before there were slots.
func (r *powered) move() scenario {
	r.t.Helper()
	r.disk.cut()
	r.PowerOff()
	program := []byte(r.disk.read("data/versions/" + r.disk.read("data/versions/current") + "/coracle"))
	service := r.disk.read("bin/coracle-service")
	service = strings.ReplaceAll(service, "bin='/usr/local/bin/coracle-start'", "bin='/usr/local/bin/coracle'")
	service = regexp.MustCompile("(?m)^.*(versions=|CORACLE_VERSIONS).*\n").ReplaceAllString(service, "")
	d := r.disk
	d.mu.Lock()
	delete(d.at("data").names, "versions")
	delete(d.at("bin").names, "coracle-start")
	for name, text := range map[string][]byte{"coracle": program, "coracle-service": []byte(service)} {
		file := d.make(nil, "", unix.S_IFREG|0o755)
		file.data = text
		d.at("bin").put(name, file)
	}
	d.mu.Unlock()
	d.restore(d.saved())
	r.boot()
	current := r.awaitVersion()
	file, digest := r.candidate("moved", r.Coracle(), "")
	return scenario{name: "move", current: current, other: digest, do: func() (string, error) { return r.install(file) },
		done: func() bool { return true }}
}

// TestPowerCut loses the power of a server as a candidate has just committed itself. The disk has forgotten that, so
// the trial goes on.
func TestPowerCut(t *testing.T) {
	r := newPoweredServer(t)
	s := r.upgrade("committed", r.Coracle(), "")
	e := r.until("rename versions/trial versions/current", s)
	testenv.Require(t, e.lost, "%v %s", e.err, e.output)
	r.disk.lose(loss{})
	testenv.Equal(t, r.disk.read("data/versions/trial"), s.other, "on trial:")
	r.boot()
	testenv.Equal(t, r.awaitVersion(), s.other, "there runs")
	testenv.Equal(t, r.settled(), s.other, "in the end, there runs")
	testenv.Equal(t, r.disk.read("data/versions/previous"), s.current, "the version before:")
}

// TestPowerCutsOfServer loses the power of a server after each step of an upgrade that is committed, of one that is
// refused, and of the move of an old installation. All is lost that was not synced.
func TestPowerCutsOfServer(t *testing.T) {
	harness.ByHand(t)
	t.Parallel() // it mostly waits
	newPoweredServer(t).cutAll(loss{})
}

// TestPowerCutsOfAgent does the same with an agent. Names are kept that were not synced: what lay behind them is lost.
func TestPowerCutsOfAgent(t *testing.T) {
	harness.ByHand(t)
	t.Parallel()
	site := harness.NewSite(t)
	server := site.NewMachine().NewServer()
	server.StartNode()
	r := newPowered(t, site.NewMachine())
	r.kubectl = server.TryKubectl
	token := testenv.Must(os.ReadFile(server.Seen("server", "agent-token")))(t)
	out, err := r.install(r.Coracle(), "agent", "--node-name", r.node, "--node-ip", r.IP, "--server", "https://"+server.IP+":6443",
		"--token", strings.TrimSpace(string(token)))
	testenv.NoError(t, err, "%s", out)
	r.cutAll(loss{names: true})
}

// cutAll cuts the power in each scenario.
func (r *powered) cutAll(l loss) {
	r.t.Helper()
	r.awaitVersion()
	before := r.upgrade("before", r.Coracle(), "") // so that there is a version before the present one
	testenv.NoError(r.t, r.until("", before).err)
	r.settled()
	r.cutEach(r.upgrade("committed", r.Coracle(), ""), committedSteps, l)
	r.cutEach(r.upgrade("refused", built(r.t, "CORACLE_TWOLEVELS_BIN"), "\ncoracle-fault=exits"), refusedSteps, l)
	r.cutEach(r.move(), movedSteps, l)
}
