// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"log/slog"
	"net"
	"os/exec"
	"testing"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/nodecreds"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestShellReadsQuotedWordBack asks a shell what it makes of a word.
func TestShellReadsQuotedWordBack(t *testing.T) {
	for text, want := range map[string]string{
		"":                               "''",
		"https://10.0.0.5:6443":          "https://10.0.0.5:6443",
		"https://[fd00::5]:6443":         "'https://[fd00::5]:6443'",
		"CRC1ab::agent:s3cret":           "CRC1ab::agent:s3cret",
		`it's $HOME "x" \ *`:             `'it'\''s $HOME "x" \ *'`,
		"~":                              "'~'",
		"a;reboot":                       "'a;reboot'",
		"two words\tand\nanother line é": "'two words\tand\nanother line é'",
	} {
		got := shellQuote(text)
		testenv.Equal(t, got, want, "%q:", text)
		out, err := exec.Command("sh", "-c", "printf %s "+got).Output()
		testenv.False(t, err != nil || string(out) != text, "a shell makes %q of %s: %v", out, got, err)
	}
}

// TestJoinLineNamesAdvertisedAddress: the address is the one that the server advertises, and the port its own.
func TestJoinLineNamesAdvertisedAddress(t *testing.T) {
	dir := t.TempDir()
	tool := &config.Tool{Paths: config.NewPaths(dir, "")}
	if got, want := ownURL(tool), "https://ADDRESS-OF-THIS-MACHINE:6443"; got != want {
		t.Errorf("before a server has run: %s, want %s", got, want)
	}
	p := testenv.Must(pki.Open(pki.Options{Dir: tool.Paths.TLSDir, Logger: slog.New(slog.DiscardHandler)}))(t)
	names := pki.APIServerNames{NodeName: "a", Domain: "cluster.local", IPs: []net.IP{net.ParseIP("fd00::5"), net.IPv4(192, 0, 2, 1)}}
	testenv.NoError(t, p.Ensure(p.APIServer(names)))
	k := nodecreds.Embedded{Server: "https://127.0.0.1:7443", CA: p.CAPEM(pki.ServerCA), Path: tool.Paths.AdminKubeconfig}
	testenv.NoError(t, k.Write())
	if got, want := ownURL(tool), "https://[fd00::5]:7443"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
