// SPDX-License-Identifier: Apache-2.0

// Command fresh runs the README's two commands as a new user does: each in a freshly bootstrapped Debian, on a machine
// of namespaces, with no caches. make fresh-test runs it. It needs root, debootstrap, slirp4netns, /dev/net/tun and the
// package servers and the Go module proxy that this machine is set up for; it takes over an hour on two cores.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// commands are what a new user types in a clone, and what shows that it worked. Nothing but make and git is installed
// before, and for the first not even make.
var commands = map[string]string{
	"install": `./install.sh
kubectl wait --for=condition=Ready node --all --timeout=60s
kubectl get nodes
coracle-uninstall
[ ! -e /var/lib/coracle ] && [ ! -e /usr/local/bin/coracle ]`,
	"test": `apt-get -qq install -y --no-install-recommends make >/dev/null
make test`,
}

func main() {
	harness.FirstProcess()
	which := flag.String("only", "install,test", "which of the commands, with commas between")
	other := flag.String("script", "", "a script to run in the clone instead")
	flag.Parse()
	ok := harness.Alone(func(t testing.TB) {
		if *other != "" {
			fresh(t, "script", *other)
			return
		}
		for name := range strings.SplitSeq(*which, ",") {
			script, known := commands[name]
			testenv.Require(t, known, "there is no command %q", name)
			fresh(t, name, script)
		}
	})
	if !ok {
		os.Exit(1)
	}
}

// fresh runs a script in a clone of this tree in a new Debian.
func fresh(t testing.TB, name, script string) {
	start := time.Now()
	logf := func(format string, args ...any) {
		fmt.Printf("%s, %4.1f minutes: "+format+"\n", append([]any{name, time.Since(start).Minutes()}, args...)...)
	}
	m := harness.NewMachine(t)
	connect(t, m)
	root := filepath.Join(m.Dir, "root")
	logf("bootstrapping a Debian")
	bootstrap(t, m, root)
	clone(t, filepath.Join(root, "root/coracle"))
	logf("running the command")
	testenv.NoError(t, inRoot(m, root, "cd /root/coracle\n"+script), "%s in a fresh Debian", name)
	logf("it worked")
}

// connect gives the machine a way out, through a process and without any rule or interface on the host: the builds
// fetch packages and modules. The machine's own link goes, because coracle takes the address of the default route.
func connect(t testing.TB, m *harness.Machine) {
	if out, err := m.Run("/usr/sbin/ip", "link", "del", "eth0"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ready, readyWrite, err := os.Pipe()
	testenv.NoError(t, err)
	defer ready.Close()
	c := exec.Command("slirp4netns", "--configure", "--mtu=1500", "--disable-host-loopback", "--ready-fd=3", fmt.Sprint(m.InitPid()), "uplink")
	c.ExtraFiles = []*os.File{readyWrite}
	testenv.NoError(t, c.Start())
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait() // it was killed
	})
	readyWrite.Close()
	testenv.NoError(t, testenv.Err(ready.Read(make([]byte, 1))), "slirp4netns did not come up")
	if out, err := m.Run("sh", "-c", "echo nameserver 10.0.2.3 > /etc/resolv.conf"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// archive is one of the distribution's archives, as this machine is set up.
type archive struct{ uri, suite string }

// archives asks apt for the archives of this Debian's release, the main one first.
func archives(t testing.TB) (codename string, list []archive) {
	release := testenv.Must(os.ReadFile("/etc/os-release"))(t)
	for line := range strings.Lines(string(release)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "VERSION_CODENAME="); ok {
			codename = name
		}
	}
	out, err := exec.Command("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages").Output()
	testenv.NoError(t, err, "which package servers are set up here")
	seen := map[archive]bool{}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) != 3 || f[2] != "main" || !strings.HasPrefix(f[1], codename) || seen[archive{f[0], f[1]}] {
			continue
		}
		a := archive{f[0], f[1]}
		seen[a] = true
		if a.suite == codename {
			list = append([]archive{a}, list...)
		} else {
			list = append(list, a)
		}
	}
	if codename == "" || len(list) == 0 || list[0].suite != codename {
		t.Fatalf("no package server for this machine's release %q is set up: %v", codename, list)
	}
	return codename, list
}

// bootstrap makes a minimal Debian with this machine's package servers.
func bootstrap(t testing.TB, m *harness.Machine, root string) {
	codename, list := archives(t)
	proxy := testenv.Must(exec.Command("apt-config", "dump", "--format", "%F \"%v\";%n", "Acquire::http", "Acquire::https").Output())(t)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	c := m.Command(ctx, "debootstrap", "--variant=minbase", "--include=ca-certificates,git", codename, root, list[0].uri)
	c.Env = append(c.Env, "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "http_proxy="+os.Getenv("http_proxy"), "https_proxy="+os.Getenv("https_proxy"))
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("debootstrap: %v\n%s", err, out)
	}
	var sources strings.Builder
	for _, a := range list {
		fmt.Fprintf(&sources, "deb %s %s main\n", a.uri, a.suite)
	}
	write := func(file, text string) {
		testenv.NoError(t, os.WriteFile(filepath.Join(root, file), []byte(text), 0o644))
	}
	write("etc/apt/sources.list", sources.String())
	write("etc/apt/apt.conf.d/90machine", string(proxy))
	write("etc/resolv.conf", "nameserver 10.0.2.3\n")
	write("etc/hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n") // as Debian's installer and its images do; debootstrap does not
	// Authorities that the operator of this machine trusts beside Debian's.
	if own, _ := filepath.Glob("/usr/local/share/ca-certificates/*.crt"); len(own) > 0 {
		testenv.NoError(t, os.CopyFS(filepath.Join(root, "usr/local/share/ca-certificates"), os.DirFS("/usr/local/share/ca-certificates")))
	}
	testenv.NoError(t, inRoot(m, root, "update-ca-certificates >/dev/null\napt-get -qq update"))
}

// clone copies what is committed here.
func clone(t testing.TB, to string) {
	if out, err := exec.Command("git", "clone", "--quiet", "--no-hardlinks", ".", to).CombinedOutput(); err != nil {
		t.Fatalf("git clone: %v\n%s", err, out)
	}
}

// enterRoot makes $1 the root directory, with the machine's kernel file systems in it, and runs the script $2 there.
const enterRoot = `set -eu
mount --make-rprivate /
mount --bind "$1" "$1"
cd "$1"
mount --rbind /proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount -t tmpfs -o mode=755 run run
mkdir -p run/lock run/netns
pivot_root . mnt
umount -l mnt
mount --make-rshared /
exec sh -c "$2"
`

// inRoot runs a shell script in the new Debian, with nothing of this process's environment but the way to the module
// proxy.
func inRoot(m *harness.Machine, root, script string) error {
	keep := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"}
	for _, name := range []string{"GOPROXY", "GOSUMDB", "GONOSUMDB", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"} {
		if v, ok := os.LookupEnv(name); ok {
			keep = append(keep, name+"="+v)
		}
	}
	args := append([]string{"-i"}, keep...)
	args = append(args, "unshare", "--mount", "sh", "-c", enterRoot, "enter", root, "set -eux\n"+script)
	c := m.Command(context.Background(), "env", args...)
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	if err := c.Run(); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return fmt.Errorf("a step ended with code %d", exit.ExitCode())
		}
		return err
	}
	return nil
}
