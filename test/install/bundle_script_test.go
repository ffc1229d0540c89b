// SPDX-License-Identifier: Apache-2.0

package install

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"aead.dev/minisign"

	"github.com/coracle-k8s/coracle/internal/bundle"
	"github.com/coracle-k8s/coracle/internal/slots"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestInstallerUnpacksSignedBundlesAlone: with minisign, nothing of a bundle is unpacked before enough trusted keys
// have signed it. Where coracle is installed, that decides.
func TestInstallerUnpacksSignedBundlesAlone(t *testing.T) {
	if _, err := exec.LookPath("minisign"); err != nil {
		testenv.Missing(t, testenv.Minisign, "%v", err)
	}
	var public []string
	var private []minisign.PrivateKey
	for range 3 {
		p, k, err := minisign.GenerateKey(nil)
		testenv.NoError(t, err)
		public, private = append(public, p.String()), append(private, k)
	}
	two := "threshold: 2\n" + public[0] + "\n" + public[1] + "\n"
	for name, tc := range map[string]struct {
		trusted, given string
		signers        []int
		change         func(data []byte) []byte
		want           string // "" when it is unpacked
	}{
		"two of two":              {trusted: two, signers: []int{0, 1}},
		"one of two":              {trusted: two, signers: []int{0}, want: "1 have signed it, and 2 have to. Nothing was installed"},
		"one of two, and a third": {trusted: two, signers: []int{0, 2}, want: "1 have signed it, and 2 have to"},
		"the key that is given":   {given: public[2], signers: []int{2}},
		"another key":             {given: public[2], signers: []int{0}, want: "is not signed by enough keys"},
		"a key behind a space":    {trusted: " " + public[1] + "\r\n", signers: []int{0}, want: "is not signed by enough keys"},
		"spaces": {trusted: " threshold: 2 \n\t" + public[0] + " \n" + public[1] + "\n", signers: []int{0},
			want: "1 have signed it, and 2 have to"},
		"not signed":               {given: public[2], want: "is not signed by enough keys"},
		"a listed key given again": {trusted: two, given: public[0], signers: []int{0}, want: "1 have signed it"},
		"changed index": {given: public[2], signers: []int{2}, change: func(b []byte) []byte {
			return bytes.Replace(b, []byte(`"counter": 7`), []byte(`"counter": 8`), 1)
		}, want: "is not signed by enough keys"},
		"changed program": {given: public[2], signers: []int{2}, change: func(b []byte) []byte {
			at := bytes.LastIndex(b, []byte("\x1f\x8b\x08")) + 24
			return append(append(bytes.Clone(b[:at]), b[at]^1), b[at+1:]...)
		}, want: "Nothing was installed"},
		"no bundle": {given: public[2], change: func([]byte) []byte { return []byte("text") }, want: "is no bundle, or is cut off"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScript(t)
			if tc.trusted != "" {
				testenv.NoError(t, os.WriteFile(filepath.Join(s.dir, "trusted-keys"), []byte(tc.trusted), 0o644))
			}
			file := fakeBundle(t)
			for _, n := range tc.signers {
				_, err := bundle.Sign(t.Context(), file, private[n])
				testenv.NoError(t, err)
			}
			if tc.change != nil {
				testenv.NoError(t, os.WriteFile(file, tc.change(testenv.Must(os.ReadFile(file))(t)), 0o644))
			}
			out, err := s.run(`arch=amd64; find_bundle; cp "$binary" "$etc/unpacked"; case $index in *'"manifests":[{"name":"shop.yaml"'*) ;; *) exit 9 ;; esac`,
				"INSTALL_CORACLE_BUNDLE="+file, "INSTALL_CORACLE_BUNDLE_KEY="+tc.given, "INSTALL_CORACLE_BIN_DIR="+filepath.Join(s.dir, "bin"))
			_, statErr := os.Stat(filepath.Join(s.dir, "unpacked"))
			testenv.Equal(t, statErr == nil, tc.want == "", "it was unpacked")
			if tc.want == "" {
				testenv.NoError(t, err, "%s", out)
			} else {
				testenv.Fails(t, err, "it was taken")
				testenv.Contains(t, out, tc.want, "it says")
			}
			left := testenv.Must(filepath.Glob(filepath.Join(s.dir, "bin/*")))(t)
			testenv.Equal(t, len(left), 0, "left behind: %v", left)
		})
	}
}

// TestFirstInstallationRecordsTheCounter: a machine that was installed from a bundle takes no older one afterwards.
func TestFirstInstallationRecordsTheCounter(t *testing.T) {
	for _, tc := range []struct {
		content, before string // before is what an upgrade has written
		want            int64
	}{{content: "yes", want: 7}, {want: 0}, {"yes", `{"counter":30}`, 30}} {
		s := newScript(t)
		testenv.NoError(t, os.WriteFile(filepath.Join(s.dir, "new"), []byte("#!/bin/sh\n"), 0o755))
		s.must(`mkdir "$versions"
bin_dir=$etc/bin binary=$etc/new bundle=`+fakeBundle(t)+` content=`+tc.content+`
index=$(tar -xOf "$bundle" index.json | tr -d ' \n\t')
if [ -n "$before" ]; then stage "$binary"; echo "$before" >"$versions/$digest/accepted.json"; fi
switch`, "before="+tc.before)
		had := testenv.Must(bundle.AcceptedBy(slots.In(filepath.Join(s.dir, "versions"))))(t)
		testenv.Equal(t, had.Counter, tc.want, "the counter on record")
	}
}

// fakeBundle makes a bundle with a manifest and a program that cannot run.
func fakeBundle(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	h := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Ehsize: 64}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	var b bytes.Buffer
	testenv.NoError(t, binary.Write(&b, binary.LittleEndian, h))
	o := bundle.Options{Name: "spring", Counter: 7, Out: filepath.Join(dir, "spring.bundle"),
		Programs: []string{filepath.Join(dir, "coracle")}, Manifests: []string{filepath.Join(dir, "shop.yaml")}}
	o.Facts, o.Marks = bundle.FactsOfThis()
	for _, mark := range o.Marks {
		b.WriteString(mark)
	}
	testenv.NoError(t, os.WriteFile(o.Programs[0], b.Bytes(), 0o755))
	testenv.NoError(t, os.WriteFile(o.Manifests[0], []byte("kind: Shop"), 0o644))
	_, _, err := bundle.Make(t.Context(), o)
	testenv.NoError(t, err)
	return o.Out
}
