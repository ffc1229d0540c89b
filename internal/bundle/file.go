// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"aead.dev/minisign"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// block is the unit of a tar, in bytes. Two blocks of zeros are its end.
	block, tail = 512, 2 * block
	// maxSignatures is how many signatures a bundle may have, maxSignature the size of one in bytes.
	maxSignatures, maxSignature = 32, 4096
	// layout is the content of the file oci-layout.
	layout = `{"imageLayoutVersion":"` + ocispec.ImageLayoutVersion + `"}`
)

// Bundle is an open bundle. It can be used by several goroutines.
type Bundle struct {
	Index *Index

	raw        []byte // index.json, as it is signed
	signatures []signature
	blobs      map[digest.Digest]*io.SectionReader
	size       int64
}

// signature is a file with the signature of one key.
type signature struct {
	minisign.Signature
	text []byte
}

// name returns the name of the signature's file. minisign(1) writes the numbers of keys in the same way.
func (s signature) name() string { return ocispec.ImageIndexFile + "." + keyID(s.KeyID) + ".minisig" }

func keyID(id uint64) string { return fmt.Sprintf("%016X", id) }

// Size returns the size of the bundle in bytes.
func (b *Bundle) Size() int64 { return b.size }

// Signers returns the numbers of the keys of all signatures, whether these are valid or not.
func (b *Bundle) Signers() (ids []string) {
	for _, s := range b.signatures {
		ids = append(ids, keyID(s.KeyID))
	}
	return ids
}

// header returns the only header that a file in a bundle can have.
func header(name string, size int64) ([]byte, error) {
	var b bytes.Buffer
	err := tar.NewWriter(&b).WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR,
	})
	return b.Bytes(), err
}

func blobName(d digest.Digest) string { return "blobs/" + string(d.Algorithm()) + "/" + d.Encoded() }

// padded returns how many bytes content of a size takes in a tar, without its header.
func padded(size int64) int64 { return (size + block - 1) / block * block }

// Open reads the index and the signatures of a bundle, and checks that its files are where the index says. It verifies
// neither the signatures nor the digests: Verify and Blob do that. The error says what the bundle is instead. Size is
// that of the whole file in bytes.
func Open(file io.ReaderAt, size int64) (*Bundle, error) {
	f := &walk{file: file, size: size}
	b := &Bundle{size: size, blobs: map[digest.Digest]*io.SectionReader{}}
	head, err := f.peek()
	switch {
	case err != nil:
		return nil, err
	case string(head[257:262]) != "ustar":
		return nil, errors.New("it is no bundle: it is no tar")
	case entryName(head) != ocispec.ImageIndexFile:
		return nil, fmt.Errorf("it is a tar, but no bundle: its first file is %q, and not %s", entryName(head), ocispec.ImageIndexFile)
	}
	if b.raw, err = f.small(head, ocispec.ImageIndexFile, maxIndex); err != nil {
		return nil, err
	}
	if b.Index, err = parseIndex(b.raw); err != nil {
		return nil, err
	}
	if b.signatures, err = f.signatures(); err != nil {
		return nil, err
	}
	data, err := f.next(ocispec.ImageLayoutFile, int64(len(layout)))
	if err != nil {
		return nil, err
	}
	if text, err := io.ReadAll(data); err != nil || string(text) != layout {
		return nil, errors.Join(fmt.Errorf("it is damaged: its file %s is not as it should be", ocispec.ImageLayoutFile), err)
	}
	for _, blob := range b.Index.Contents.Blobs {
		if b.blobs[blob.Digest], err = f.next(blobName(blob.Digest), blob.Size); err != nil {
			return nil, err
		}
	}
	return b, f.end()
}

// walk reads the files of a bundle one after the other.
type walk struct {
	file io.ReaderAt
	pos  int64
	size int64
}

// read returns n bytes at the present position, which stays.
func (f *walk) read(n int64) ([]byte, error) {
	if f.size-f.pos < n {
		return nil, fmt.Errorf("it is cut off after %d bytes: copy it again", f.size)
	}
	buf := make([]byte, n)
	if _, err := f.file.ReadAt(buf, f.pos); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("reading the bundle: %w", err)
	}
	return buf, nil
}

func (f *walk) peek() ([]byte, error) { return f.read(block) }

// entryName returns the name in a header.
func entryName(head []byte) string {
	name, _, _ := strings.Cut(string(head[:100]), "\x00")
	return name
}

// small reads a file whose size is in its header alone.
func (f *walk) small(head []byte, name string, most int64) ([]byte, error) {
	size, err := strconv.ParseInt(string(head[124:135]), 8, 64)
	if err != nil || size > most {
		return nil, fmt.Errorf("it is damaged, or no bundle: %s may have %d bytes at most", name, most)
	}
	data, err := f.next(name, size)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(data)
}

// next passes over a file, which has to have this name and size, and returns its content.
func (f *walk) next(name string, size int64) (*io.SectionReader, error) {
	want, err := header(name, size)
	if err != nil {
		return nil, fmt.Errorf("its index is wrong: %s with %d bytes: %w", name, size, err)
	}
	head, err := f.peek()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(head, want) {
		return nil, fmt.Errorf("it is damaged, or was packed by another program: %s is not where its index says", name)
	}
	f.pos += block
	rest := padded(size)
	if f.size-f.pos < rest {
		return nil, fmt.Errorf("it is cut off after %d bytes, within %s: copy it again", f.size, name)
	}
	data := io.NewSectionReader(f.file, f.pos, size)
	f.pos += size
	if err := f.zeros(rest - size); err != nil {
		return nil, err
	}
	return data, nil
}

// zeros passes over n bytes, which have to be zero.
func (f *walk) zeros(n int64) error {
	buf, err := f.read(n)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(buf, func(c byte) bool { return c != 0 }) {
		return errors.New("it is damaged: there are bytes between its files")
	}
	f.pos += n
	return nil
}

// end checks that the bundle ends at the present position.
func (f *walk) end() error {
	if err := f.zeros(tail); err != nil {
		return err
	}
	if f.pos != f.size {
		return fmt.Errorf("it is damaged: there are %d bytes behind its end", f.size-f.pos)
	}
	return nil
}

var signatureName = regexp.MustCompile(`^index\.json\.[0-9A-F]{16}\.minisig$`)

// signatures reads all signatures. They are in the order of the keys' numbers, and each key has one.
func (f *walk) signatures() (out []signature, err error) {
	for {
		head, err := f.peek()
		if err != nil {
			return nil, err
		}
		name := entryName(head)
		if !signatureName.MatchString(name) {
			return out, nil
		}
		s := signature{}
		if s.text, err = f.small(head, name, maxSignature); err != nil {
			return nil, err
		}
		if err := s.UnmarshalText(s.text); err != nil || s.name() != name {
			return nil, fmt.Errorf("its file %s is no signature of that key", name)
		}
		if len(out) > 0 && out[len(out)-1].KeyID >= s.KeyID {
			return nil, errors.New("it is damaged: its signatures are not in order")
		}
		if out = append(out, s); len(out) > maxSignatures {
			return nil, fmt.Errorf("it has more than %d signatures", maxSignatures)
		}
	}
}

// Blob returns a reader of a blob. Its last call to Read returns an error, in the place of io.EOF, if the blob does not
// have its digest.
func (b *Bundle) Blob(d digest.Digest) (io.Reader, error) {
	section, ok := b.blobs[d]
	if !ok {
		return nil, fmt.Errorf("the bundle has no blob %s", d)
	}
	return checked(io.NewSectionReader(section, 0, section.Size()), Blob{d, section.Size()}, "the bundle is damaged"), nil
}

// checkedReader computes the digest of what is read.
type checkedReader struct {
	r     io.Reader
	blob  Blob
	sum   digest.Digester
	left  int64
	wrong string // how the error begins
}

// checked returns a reader of content that has to be a blob.
func checked(r io.Reader, blob Blob, wrong string) io.Reader {
	return &checkedReader{r, blob, digest.SHA256.Digester(), blob.Size, wrong}
}

func (c *checkedReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.sum.Hash().Write(p[:n])
	c.left -= int64(n)
	if c.left < 0 || errors.Is(err, io.EOF) && (c.left != 0 || c.sum.Digest() != c.blob.Digest) {
		return n, fmt.Errorf("%s: the content of the blob %s does not have that digest", c.wrong, c.blob.Digest.Encoded())
	}
	return n, err
}
