// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestConntrackLimitsGrowWithCores(t *testing.T) {
	const netfilter = "proc/sys/net/netfilter/nf_conntrack_"
	for _, c := range []struct {
		name       string
		cores      int
		have, want map[string]string
	}{
		{"a board's kernel", 4, map[string]string{
			netfilter + "max": "8192\n", "sys/module/nf_conntrack/parameters/hashsize": "8192\n",
			netfilter + "tcp_timeout_established": "432000\n", netfilter + "tcp_timeout_close_wait": "60\n",
		}, map[string]string{
			netfilter + "max": "131072", "sys/module/nf_conntrack/parameters/hashsize": "32768",
			netfilter + "tcp_timeout_established": "86400", netfilter + "tcp_timeout_close_wait": "3600",
		}},
		{"another process has gone further", 2, map[string]string{
			netfilter + "max": "1000000", netfilter + "tcp_timeout_established": "3600", netfilter + "tcp_timeout_close_wait": "7200",
		}, map[string]string{
			netfilter + "max": "1000000", netfilter + "tcp_timeout_established": "3600", netfilter + "tcp_timeout_close_wait": "7200",
		}},
		{"many cores", 8, map[string]string{netfilter + "max": "131072"}, map[string]string{netfilter + "max": "262144"}},
		{"very many cores", 400, map[string]string{netfilter + "max": "131072"}, map[string]string{netfilter + "max": "1048576"}},
		{"nothing there", 2, nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			for file, text := range c.have {
				path := filepath.Join(root, file)
				testenv.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
				testenv.NoError(t, os.WriteFile(path, []byte(text), 0o644))
			}
			testenv.NoError(t, limitConntrack(root, conntrackLimits(c.cores)))
			for file, want := range c.want {
				testenv.Equal(t, strings.TrimSpace(string(testenv.Must(os.ReadFile(filepath.Join(root, file)))(t))), want, "%s:", file)
			}
		})
	}
}
