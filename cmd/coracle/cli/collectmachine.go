// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/cmd/coracle/cli/bugreport"
	"github.com/coracle-k8s/coracle/internal/truncate"
)

const (
	// logTail is how much of the end of a log is collected, and olderTail of the file before it, in bytes.
	logTail, olderTail = 3_000_000, 1_000_000
	// journalLines is how many lines of the journal are collected.
	journalLines = "10000"
	// listedFiles is how many files of the data directory are listed.
	listedFiles = 3000
	// lineLength is how much of a line of the list of mounts is collected: an image has tens of layers.
	lineLength = 300
	// containerdTime is the maximum duration of all questions to containerd together.
	containerdTime = 20 * time.Second
	// kernelLog is how much of the kernel's messages is collected, in bytes.
	kernelLog = 256 << 10
)

func (c *collector) collectLog(ctx context.Context, f *bugreport.Files) {
	file := cmp.Or(c.setting("log"), defaultLogFile)
	logs := map[string]int64{file: logTail, file + ".1": olderTail}
	// Without the setting, standard error may be a file.
	if output, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/2", c.pid)); err == nil && filepath.IsAbs(output) {
		logs[output] = logTail
	}
	for name, length := range logs {
		if info, err := os.Stat(name); err == nil && info.Mode().IsRegular() {
			text, err := readTail(name, length)
			f.Text(filepath.Base(name), text)
			f.Failed(filepath.Base(name), err)
		}
	}
	if !exists("/run/systemd/system") {
		return
	}
	c.run(ctx, f, "journal.txt", "journalctl", "--unit", "coracle", "--lines", journalLines, "--output", "short-iso", "--no-pager")
	c.run(ctx, f, "service.txt", "systemctl", "show", "coracle", "--property",
		"ActiveState,SubState,Result,NRestarts,ExecMainStatus,ExecMainCode,ActiveEnterTimestamp,InactiveEnterTimestamp,UnitFileState,MemoryCurrent,TasksCurrent")
}

func (c *collector) collectNode(ctx context.Context, f *bugreport.Files) {
	p := c.tool.Paths
	var pods, logs strings.Builder
	volumes, err := filepath.Glob(filepath.Join(p.KubeletRoot, "pods", "*", "volumes", "*", "*"))
	f.Failed("kubelet-volumes.txt", err)
	for _, path := range volumes {
		fmt.Fprintln(&pods, strings.TrimPrefix(path, p.KubeletRoot+"/"))
	}
	f.Text("kubelet-volumes.txt", pods.String())
	f.Failed("pod-logs.txt", listFiles(&logs, p.PodLogs, 3, nil))
	f.Text("pod-logs.txt", logs.String())
	if !exists(p.ContainerdSocket) {
		f.Failed("containers.txt", fmt.Errorf("there is no containerd at %s", p.ContainerdSocket))
		return
	}
	ctx, cancel := context.WithTimeout(ctx, containerdTime)
	defer cancel()
	for name, args := range map[string][]string{
		"containers": {"containers", "ls"}, "images": {"images", "ls"}, "tasks": {"tasks", "ls"}, "snapshots": {"snapshots", "ls"},
		"plugins": {"plugins", "ls"}, "content": {"content", "ls"}, "leases": {"leases", "ls"},
	} {
		cmd := exec.Command("/proc/self/exe", append([]string{"ctr"}, args...)...)
		cmd.Args[0] = "coracle"
		cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "CONTAINERD_ADDRESS=" + p.ContainerdSocket, "CONTAINERD_NAMESPACE=k8s.io",
			"CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=true", "CORACLE_CONFIG_FILE=/dev/null"}
		f.Command(ctx, name+".txt", cmd)
	}
}

func (c *collector) collectNetwork(ctx context.Context, f *bugreport.Files) {
	c.run(ctx, f, "addresses.txt", "ip", "-details", "address")
	c.run(ctx, f, "links.txt", "ip", "-statistics", "link")
	c.run(ctx, f, "rules.txt", "ip", "rule")
	c.run(ctx, f, "rules6.txt", "ip", "-6", "rule")
	c.run(ctx, f, "routes.txt", "ip", "route", "show", "table", "all")
	c.run(ctx, f, "routes6.txt", "ip", "-6", "route", "show", "table", "all")
	c.run(ctx, f, "neighbours.txt", "ip", "neighbour")
	c.run(ctx, f, "listeners.txt", "ss", "-lntup")
	nft := filepath.Join(c.tool.Paths.BinDir, "current", "nft")
	if !exists(nft) {
		nft = "nft"
	}
	rules, err := bugreport.Output(ctx, newCommand(nft, "list", "ruleset"))
	f.Binary("nftables.txt", []byte(rules)) // names of chains look like keys
	f.Failed("nftables.txt", err)
	for _, name := range []string{"dev", "route", "ipv6_route", "sockstat", "snmp", "netstat", "ip_vs", "ip_vs_stats"} {
		if path := "/proc/net/" + name; exists(path) {
			c.copyFile(f, "proc-"+name+".txt", path)
		}
	}
	c.copyFile(f, "resolv.conf", "/etc/resolv.conf")
	var b strings.Builder
	for _, name := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv6/conf/all/disable_ipv6", "ipv4/conf/all/rp_filter",
		"bridge/bridge-nf-call-iptables", "netfilter/nf_conntrack_max", "netfilter/nf_conntrack_count", "ipv4/ip_local_port_range"} {
		text, err := os.ReadFile("/proc/sys/net/" + name)
		fmt.Fprintf(&b, "%s = %s\n", name, cmp.Or(strings.TrimSpace(string(text)), fmt.Sprint(err)))
	}
	f.Text("sysctl.txt", b.String())
}

func (c *collector) collectHost(ctx context.Context, f *bugreport.Files) {
	for name, path := range map[string]string{
		"kernel": "/proc/version", "release": "/etc/os-release", "memory": "/proc/meminfo", "load": "/proc/loadavg",
		"uptime": "/proc/uptime", "swaps": "/proc/swaps", "modules": "/proc/modules", "filesystems": "/proc/filesystems",
		"diskstats": "/proc/diskstats", "cgroups": "/proc/cgroups",
		"pressure-cpu": "/proc/pressure/cpu", "pressure-memory": "/proc/pressure/memory",
		"pressure-io": "/proc/pressure/io",
	} {
		c.copyFile(f, name+".txt", path)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	f.Failed("mounts.txt", err)
	var b strings.Builder
	for line := range strings.Lines(string(mounts)) {
		b.WriteString(truncate.Text(strings.TrimSuffix(line, "\n"), lineLength) + "\n")
	}
	f.Text("mounts.txt", b.String())
	f.Text("processes.txt", processNames())
	text := make([]byte, kernelLog)
	n, err := unix.Klogctl(unix.SYSLOG_ACTION_READ_ALL, text) // the newest messages
	f.Failed("kernel-messages.txt", err)
	f.Text("kernel-messages.txt", string(text[:max(0, n)]))
	c.run(ctx, f, "disks.txt", "df", "--human-readable", "--print-type")
	c.run(ctx, f, "inodes.txt", "df", "--inodes")
}

// processNames lists the processes of the machine without their arguments.
func processNames() string {
	var b strings.Builder
	b.WriteString("pid (name) state parent; resident pages at the end\n")
	stats, _ := filepath.Glob("/proc/[0-9]*/stat") // the pattern is right
	for _, path := range stats {
		text, err := os.ReadFile(path)
		fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		if err != nil || len(fields) < 22 {
			continue // it has ended
		}
		name, _, _ := strings.Cut(string(text), ") ")
		fmt.Fprintf(&b, "%s) %s %s %s\n", name, fields[0], fields[1], fields[21])
	}
	return b.String()
}

func (c *collector) collectData(_ context.Context, f *bugreport.Files) {
	p := c.tool.Paths
	var b strings.Builder
	// Volumes may be on a server that does not respond, and images have many files.
	err := listFiles(&b, p.DataDir, 5, []string{p.ContainerdRoot, p.KubeletRoot, p.PodLogs, p.StorageDir, p.BinDir, p.ContainerdState})
	f.Text("files.txt", b.String())
	f.Failed("files.txt", err)
}

// listFiles writes the mode, size, time and path of files down to a depth, without what is below the given folders.
func listFiles(b *strings.Builder, root string, depth int, without []string) error {
	listed := 0
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			fmt.Fprintf(b, "%v\n", err)
			return nil
		}
		if listed++; listed > listedFiles {
			b.WriteString("…\n")
			return fs.SkipAll
		}
		info, err := d.Info()
		if err != nil {
			return nil // it is removed
		}
		fmt.Fprintf(b, "%s %12d %s %s\n", info.Mode(), info.Size(), info.ModTime().UTC().Format("2006-01-02T15:04:05Z"), path)
		rel, _ := filepath.Rel(root, path) // path is below root
		if d.IsDir() && (slices.Contains(without, path) || strings.Count(rel, "/") >= depth-1 && rel != ".") {
			return fs.SkipDir
		}
		return nil
	})
}

// readTail returns the end of a file, from the beginning of a line on.
func readTail(path string, length int64) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	from := max(0, info.Size()-length)
	text := make([]byte, min(length, info.Size()))
	n, err := f.ReadAt(text, from)
	text = text[:n]
	if from > 0 {
		text = text[slices.Index(text, '\n')+1:]
	}
	return string(text), err
}
