// SPDX-License-Identifier: Apache-2.0

package memory_test

import (
	"strings"
	"testing"
	"testing/fstest"

	"github.com/coracle-k8s/coracle/internal/memory"
)

const (
	meminfo = "MemTotal:         524288 kB\nMemFree:           1000 kB\n"
	mountV2 = "29 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
	mountV1 = "30 23 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n" +
		"35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n"
	mountHybrid = mountV1 + "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n"
)

func TestSmallestControlGroupLimitCounts(t *testing.T) {
	const mb = 1 << 20
	for name, test := range map[string]struct {
		mounts, group string
		files         map[string]string
		want          int64
		file          string
	}{
		"no control groups": {want: 512 * mb},
		"version 2, no limit": {
			mounts: mountV2, group: "0::/system.slice/coracle.service\n",
			files: map[string]string{"system.slice/coracle.service/memory.max": "max\n"}, want: 512 * mb,
		},
		"version 2": {
			mounts: mountV2, group: "0::/system.slice/coracle.service\n",
			files: map[string]string{"system.slice/coracle.service/memory.max": "209715200\n", "system.slice/memory.max": "max\n"},
			want:  200 * mb, file: "/sys/fs/cgroup/system.slice/coracle.service/memory.max",
		},
		"version 2, a group above has less": {
			mounts: mountV2, group: "0::/a/b/c\n",
			files: map[string]string{"a/b/c/memory.max": "209715200\n", "a/memory.max": "104857600\n", "memory.max": "max\n"},
			want:  100 * mb, file: "/sys/fs/cgroup/a/memory.max",
		},
		"version 2, slowed down earlier": {
			mounts: mountV2, group: "0::/a\n",
			files: map[string]string{"a/memory.max": "209715200\n", "a/memory.high": "157286400\n"},
			want:  150 * mb, file: "/sys/fs/cgroup/a/memory.high",
		},
		"version 2, in a container that sees its own group as the top": {
			mounts: mountV2, group: "0::/\n", files: map[string]string{"memory.max": "104857600\n"},
			want: 100 * mb, file: "/sys/fs/cgroup/memory.max",
		},
		"more than the machine has": {
			mounts: mountV2, group: "0::/a\n", files: map[string]string{"a/memory.max": "2147483648\n"},
			want: 512 * mb, file: "/sys/fs/cgroup/a/memory.max",
		},
		"version 1, no limit": {
			mounts: mountV1, group: "4:memory:/x\n1:cpu:/\n",
			files: map[string]string{"memory/x/memory.limit_in_bytes": "9223372036854771712\n", "memory/memory.limit_in_bytes": "9223372036854771712\n"},
			want:  512 * mb,
		},
		"version 1": {
			mounts: mountV1, group: "4:cpuset,memory:/x/y\n1:cpu:/z\n",
			files: map[string]string{"memory/x/y/memory.limit_in_bytes": "209715200\n", "memory/x/memory.limit_in_bytes": "104857600\n"},
			want:  100 * mb, file: "/sys/fs/cgroup/memory/x/memory.limit_in_bytes",
		},
		"version 1, in a container whose group is mounted as the top": {
			mounts: "35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n", group: "4:memory:/docker/abc/child\n",
			files: map[string]string{"memory/child/memory.limit_in_bytes": "209715200\n", "memory/memory.limit_in_bytes": "104857600\n"},
			want:  100 * mb, file: "/sys/fs/cgroup/memory/memory.limit_in_bytes",
		},
		"version 1, limited above what is mounted": {
			mounts: "35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n", group: "4:memory:/docker/abc\n",
			files: map[string]string{"memory/memory.limit_in_bytes": "209715200\n", "memory/memory.stat": "cache 1\nhierarchical_memory_limit 104857600\n"},
			want:  100 * mb, file: "/sys/fs/cgroup/memory/memory.stat",
		},
		"version 1, the group is not below what is mounted": {
			mounts: "35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n", group: "4:memory:/other\n",
			files: map[string]string{"memory/memory.limit_in_bytes": "104857600\n"},
			want:  100 * mb, file: "/sys/fs/cgroup/memory/memory.limit_in_bytes",
		},
		"both versions, memory with the first": {
			mounts: mountHybrid, group: "4:memory:/x\n0::/\n",
			files: map[string]string{"memory/x/memory.limit_in_bytes": "104857600\n"},
			want:  100 * mb, file: "/sys/fs/cgroup/memory/x/memory.limit_in_bytes",
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := fstest.MapFS{
				"proc/meminfo":      {Data: []byte(meminfo)},
				"proc/17/mountinfo": {Data: []byte("23 1 254:0 / / rw - ext4 /dev/vda rw\n" + test.mounts)},
				"proc/17/cgroup":    {Data: []byte(test.group)},
			}
			for file, text := range test.files {
				root["sys/fs/cgroup/"+file] = &fstest.MapFile{Data: []byte(text)}
			}
			got, err := memory.Read(root, "17")
			if err != nil || got.Bytes != test.want || got.File != test.file {
				t.Errorf("%+v, %v; want %d by %q", got, err, test.want, test.file)
			}
		})
	}
}

func TestMachineMemoryMustBeThere(t *testing.T) {
	for _, files := range []fstest.MapFS{{}, {"proc/meminfo": {Data: []byte("MemFree: 17 kB\n")}}, {"proc/meminfo": {Data: []byte("MemTotal: many\n")}}} {
		if l, err := memory.Read(files, "17"); err == nil {
			t.Errorf("%+v without an error", l)
		}
	}
}

// This machine has memory, and says where the limit comes from.
func TestThisMachineHasALimit(t *testing.T) {
	l, err := memory.Self()
	if err != nil || l.Bytes < 1<<20 || l.Bytes > l.Machine || !strings.Contains(l.String(), " MB, the ") {
		t.Errorf("%+v, %v, %s", l, err, l)
	}
}
