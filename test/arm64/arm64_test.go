//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package arm64

import (
	"bufio"
	"bytes"
	"context"
	"embed"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/internal/imagetar"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const (
	// guestVar names the folder that packaging/arm64-guest.sh made.
	guestVar = "CORACLE_ARM64_GUEST"
	// binVar names coracle for arm64.
	binVar = "CORACLE_ARM64_BIN"
	// over begins the last of the lines by which the machine says how a step went.
	over = "board: over: "
	// patience is for all steps together: they took four minutes on two cores that others wanted as well.
	patience = 40 * time.Minute
	diskSize = "6G"
)

//go:embed board.sh pods.yaml policy.yaml
var files embed.FS

// TestClusterRunsOnArm64 boots the machine and reads what it says.
func TestClusterRunsOnArm64(t *testing.T) {
	guest, coracle := os.Getenv(guestVar), os.Getenv(binVar)
	if guest == "" || coracle == "" {
		testenv.Missing(t, testenv.Arm64Guest, "%s or %s names none (make arm64-test)", guestVar, binVar)
	}
	disk := writeDisk(t, guest, coracle)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c := exec.CommandContext(ctx, "qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a72", "-smp", "2", "-m", "2048", "-accel", "tcg,thread=multi",
		"-nodefaults", "-nographic", "-serial", "stdio", "-no-reboot", "-nic", "none",
		"-kernel", filepath.Join(guest, "vmlinuz"), "-initrd", filepath.Join(guest, "initramfs"), "-append", "console=ttyAMA0 quiet panic=-1",
		"-drive", "file="+disk+",format=raw,if=none,id=disk,cache=unsafe", "-device", "virtio-blk-pci,drive=disk")
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	c.WaitDelay = 10 * time.Second
	var errors bytes.Buffer
	c.Stderr = &errors
	out := testenv.Must(c.StdoutPipe())(t)
	testenv.NoError(t, c.Start())
	how := ""
	for s := bufio.NewScanner(out); s.Scan(); {
		line := strings.TrimRight(s.Text(), "\r")
		t.Log(line)
		if rest, ok := strings.CutPrefix(line, over); ok {
			how = rest
		}
	}
	if err := c.Wait(); err != nil || how != "0" {
		t.Errorf("it ended with %q, and the emulator with %v %s", how, err, errors.Bytes())
	}
}

// writeDisk makes the machine's disk: its programs, and the image of its pods.
func writeDisk(t *testing.T, guest, coracle string) string {
	t.Helper()
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	for _, folder := range []string{"bin", "usr/local/bin", "lib", "etc", "dev", "proc", "sys", "run", "tmp", "root", "var/log", "var/lib/coracle/images"} {
		testenv.NoError(t, os.MkdirAll(filepath.Join(root, folder), 0o755))
	}
	for name, mode := range map[string]fs.FileMode{"board.sh": 0o755, "pods.yaml": 0o644, "policy.yaml": 0o644} {
		text, err := files.ReadFile(name)
		if err == nil {
			err = os.WriteFile(filepath.Join(root, name), text, mode)
		}
		testenv.NoError(t, err)
	}
	busybox, testbox := filepath.Join(guest, "busybox"), filepath.Join(dir, "testbox")
	build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", testbox, "github.com/coracle-k8s/coracle/test/testbox")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH=arm64")
	if said, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build testbox: %v\n%s", err, said)
	}
	writeImage(t, filepath.Join(root, "var/lib/coracle/images/test.tar"), busybox, testbox)
	for _, args := range [][]string{
		{"cp", "-L", coracle, filepath.Join(root, "usr/local/bin/coracle")},
		{"cp", "-L", busybox, filepath.Join(root, "bin/busybox")},
		{"cp", "-rL", filepath.Join(guest, "modules"), filepath.Join(root, "lib/modules")},
		{"sh", "-c", `for name in $(busybox --list); do [ "$name" = busybox ] || ln -s busybox "$0/$name"; done`, filepath.Join(root, "bin")},
		{"ln", "-s", "bin", filepath.Join(root, "sbin")}, // where the kernel looks for modprobe
		{"truncate", "-s", diskSize, filepath.Join(dir, "disk")},
		{"mkfs.ext4", "-q", "-d", root, filepath.Join(dir, "disk")},
		{"rm", "-rf", root},
	} {
		if said, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v %s", strings.Join(args, " "), err, said)
		}
	}
	return filepath.Join(dir, "disk")
}

// writeImage writes the image of the pods: busybox, and testbox, since a static busybox cannot resolve names.
func writeImage(t *testing.T, path, busybox, testbox string) {
	t.Helper()
	image := imagetar.Image{
		Name: "coracle.test/arm64:1", Architecture: "arm64", Env: []string{"PATH=/bin"}, Cmd: []string{"sh"},
		Files: []imagetar.File{
			{Path: "/bin/busybox", Source: busybox, Mode: 0o755},
			{Path: "/bin/testbox", Source: testbox, Mode: 0o755},
			{Path: "/tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777},
		},
	}
	for _, applet := range []string{"sh", "echo", "cat", "grep", "httpd", "sleep", "uname"} {
		image.Files = append(image.Files, imagetar.File{Path: "/bin/" + applet, Link: "busybox"})
	}
	out := testenv.Must(os.Create(path))(t)
	testenv.NoError(t, imagetar.Write(out, image))
	testenv.NoError(t, out.Close())
}
