// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"

	"aead.dev/minisign"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/coracle-k8s/coracle/internal/bundle"
	"github.com/coracle-k8s/coracle/internal/imagetar"
)

// fakeProgram writes a file that is a build of this version for bundles: program FILE amd64|arm64.
func fakeProgram(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(writeFakeProgram(ts.MkAbs(args[0]), args[1], ""))
}

// writeFakeProgram writes a file that is a build of this version for bundles. Files with other texts are other builds.
func writeFakeProgram(path, architecture, text string) error {
	machine := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[architecture]
	h := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: 1, Ehsize: 64}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	var b bytes.Buffer
	if err := binary.Write(&b, binary.LittleEndian, h); err != nil {
		return err
	}
	_, marks := bundle.FactsOfThis()
	for _, mark := range marks {
		b.WriteString(mark)
	}
	b.WriteString(text)
	return os.WriteFile(path, b.Bytes(), 0o755)
}

// imageArchive writes an archive with one image: imagearchive FILE NAME.
func imageArchive(ts *testscript.TestScript, _ bool, args []string) {
	var b bytes.Buffer
	ts.Check(imagetar.Write(&b, imagetar.Image{Name: args[1]}))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b.Bytes(), 0o644))
}

// keyPair writes the files NAME.key and NAME.pub of minisign: keypair NAME. The private key is not encrypted: that
// takes 1 GB of memory.
func keyPair(ts *testscript.TestScript, _ bool, args []string) {
	public, private, err := minisign.GenerateKey(nil)
	ts.Check(err)
	for ending, key := range map[string]interface{ MarshalText() ([]byte, error) }{".pub": public, ".key": private} {
		text, err := key.MarshalText()
		ts.Check(err)
		ts.Check(os.WriteFile(ts.MkAbs(args[0]+ending), text, 0o600))
	}
}
