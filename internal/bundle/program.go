// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/opencontainers/go-digest"
)

// architectures are Go's names of the processors for which there are releases.
var architectures = map[elf.Machine]string{elf.EM_X86_64: "amd64", elf.EM_AARCH64: "arm64"}

// architecture returns Go's name of the processor that a program is for.
func architecture(file string) (string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return "", fmt.Errorf("%s is no program for Linux: %w", file, err)
	}
	defer func() { _ = f.Close() }() // it was only read
	name := architectures[f.Machine]
	if name == "" || f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN {
		return "", fmt.Errorf("%s is no program for a processor that coracle runs on (%s)", file, f.Machine)
	}
	return name, nil
}

// containsAll says whether a file contains all these texts.
func containsAll(file string, texts []string) (bool, error) {
	f, err := os.Open(file)
	if err != nil {
		return false, err
	}
	defer f.Close()
	longest := 0
	for _, t := range texts {
		longest = max(longest, len(t))
	}
	missing := slices.Clone(texts)
	buf, kept := make([]byte, 1<<20+longest), 0
	for len(missing) > 0 {
		n, err := io.ReadFull(f, buf[kept:])
		missing = slices.DeleteFunc(missing, func(t string) bool { return bytes.Contains(buf[:kept+n], []byte(t)) })
		if err != nil {
			break
		}
		kept = copy(buf, buf[len(buf)-longest:]) // a text may stand across two pieces
	}
	return len(missing) == 0, nil
}

// pack packs a file by gzip, and returns the digest of both forms.
func pack(from, to string) (plain, packed Blob, err error) {
	in, err := os.Open(from)
	if err != nil {
		return plain, packed, err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return plain, packed, err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	sum, packedSum := digest.SHA256.Digester(), digest.SHA256.Digester()
	counted := &counter{w: io.MultiWriter(out, packedSum.Hash())}
	z := gzip.NewWriter(counted) // without a name and a time
	n, err := io.Copy(io.MultiWriter(z, sum.Hash()), in)
	if err != nil {
		return plain, packed, err
	}
	if err := z.Close(); err != nil {
		return plain, packed, err
	}
	return Blob{sum.Digest(), n}, Blob{packedSum.Digest(), counted.n}, nil
}

// counter counts what is written through it.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
