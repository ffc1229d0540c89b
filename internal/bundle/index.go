// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// format is the form of bundles that this program makes and reads.
	format = 1
	// What a bundle may have at most. Both sizes are in bytes. Decoding an index allocates up to 210 times its size
	// (a test), and it is decoded before its signatures are checked.
	maxIndex, maxBlobs, maxBlobSize = 1 << 20, 4096, 8<<30 - 1
	// maxName is how long the name of an image may be. A reference has at most 255 bytes without its tag and digest.
	maxName = 512
)

// Index is what a bundle says of itself. It is the file index.json: an index of the Open Container Initiative, with the
// images as its manifests, and one member more.
type Index struct {
	specs.Versioned
	MediaType string               `json:"mediaType"`
	Manifests []ocispec.Descriptor `json:"manifests"`
	Contents  Contents             `json:"coracle"`
}

// Contents is the part of the index that is coracle's own.
type Contents struct {
	Format int    `json:"format"`
	Name   string `json:"name"`
	// Counter is larger in each bundle that replaces another one. A machine refuses a bundle with a smaller one than it
	// has committed.
	Counter int64 `json:"counter"`
	// Program is absent in a bundle that has only images, charts and manifests.
	Program   *Program `json:"program,omitempty"`
	Charts    []File   `json:"charts,omitempty"`
	Manifests []File   `json:"manifests,omitempty"`
	// SBOM is the list of the program's parts in the form of CycloneDX.
	SBOM *File `json:"sbom,omitempty"`
	// Keys replaces the release keys, if enough of the old and of the new ones have signed.
	Keys *NamedKeys `json:"keys,omitempty"`
	// Blobs lists all blobs in the order in which they are in the file.
	Blobs []Blob `json:"blobs"`
}

// Facts are what a program says of itself.
type Facts struct {
	Version string `json:"version"`
	// Level is the newest level that the program knows, OldestLevel the oldest one (internal/level).
	Level       int `json:"level"`
	OldestLevel int `json:"oldestLevel"`
	// Kubernetes is the minor version at the newest level, such as 1.37.
	Kubernetes string `json:"kubernetes"`
	// ContainerdDB is the form of containerd's database, Shim that of the protocol with its shims. With newer ones, a
	// machine cannot go back to the version before.
	ContainerdDB string `json:"containerdDB"`
	Shim         int    `json:"shim"`
}

// Program is a version of coracle, with a build for each processor.
type Program struct {
	Facts
	// From is the oldest version that this one can replace; empty where the level alone decides.
	From   string  `json:"from,omitempty"`
	Builds []Build `json:"builds"`
}

// Build is the program for one processor.
type Build struct {
	// Architecture is Go's name of the processor architecture.
	Architecture string `json:"architecture"`
	// File is the program itself. Packed is the blob that has it, packed by gzip.
	File   Blob `json:"file"`
	Packed Blob `json:"packed"`
}

// Blob is a piece of content.
type Blob struct {
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`
}

// File is a blob with a file name.
type File struct {
	Name string `json:"name"`
	Blob
}

// Images returns the names of the images.
func (x *Index) Images() (names []string) {
	for _, m := range x.Manifests {
		names = append(names, m.Annotations[ocispec.AnnotationRefName])
	}
	return names
}

// fileName matches names of bundles, charts and manifests. They have no slash, and do not begin with a dot.
var fileName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$`)

// manifestEndings are the endings of the files' names that the manifests' folder takes.
var manifestEndings = []string{".yaml", ".yml", ".json"}

// parseIndex decodes an index, and checks it completely, apart from its keys.
func parseIndex(data []byte) (*Index, error) {
	x := &Index{}
	if err := json.Unmarshal(data, x); err != nil {
		return nil, fmt.Errorf("its index cannot be read: %w", err)
	}
	switch c := &x.Contents; {
	case c.Format == 0:
		return nil, errors.New("it is an archive of images, but no bundle of coracle: make one of it with coracle bundle make --image FILE")
	case c.Format != format:
		return nil, fmt.Errorf("it has format %d, and this version of coracle knows format %d: a newer one is needed", c.Format, format)
	}
	return x, x.check()
}

// check returns an error for an index that refers to what the bundle does not have, or that has it twice.
func (x *Index) check() error {
	c := &x.Contents
	if !fileName.MatchString(c.Name) {
		return fmt.Errorf("its name %q is none: a name has letters, digits and . _ + - only", c.Name)
	}
	if c.Counter < 1 {
		return fmt.Errorf("its counter is %d; a counter begins with 1", c.Counter)
	}
	sizes, err := blobSizes(c.Blobs)
	if err != nil {
		return err
	}
	has := func(what string, b Blob) error {
		if size, ok := sizes[b.Digest]; !ok || size != b.Size {
			return fmt.Errorf("its index is wrong: %s is not among the blobs", what)
		}
		return nil
	}
	for _, m := range x.Manifests {
		name := m.Annotations[ocispec.AnnotationRefName]
		if name == "" || len(name) > maxName || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return fmt.Errorf("its index is wrong: %q is no name of an image", name)
		}
		if err := has("image "+name, Blob{m.Digest, m.Size}); err != nil {
			return err
		}
	}
	if name := repeated(x.Images()); name != "" {
		return fmt.Errorf("its index is wrong: it has the image %s twice", name)
	}
	for _, files := range [][]File{c.Charts, c.Manifests} {
		var names []string
		for _, f := range files {
			if !fileName.MatchString(f.Name) {
				return fmt.Errorf("its index is wrong: %q is no name of a chart or a manifest", f.Name)
			}
			if err := has(f.Name, f.Blob); err != nil {
				return err
			}
			names = append(names, f.Name)
		}
		if name := repeated(names); name != "" {
			return fmt.Errorf("its index is wrong: it has %s twice", name)
		}
	}
	for _, f := range c.Charts {
		if filepath.Ext(f.Name) != ".tgz" {
			return fmt.Errorf("%s is no packed chart: its name has to end with .tgz", f.Name)
		}
	}
	for _, f := range c.Manifests {
		if !slices.Contains(manifestEndings, filepath.Ext(f.Name)) {
			return fmt.Errorf("%s is no manifest: its name has to end with %s", f.Name, strings.Join(manifestEndings, ", "))
		}
	}
	if c.SBOM != nil {
		if err := has("its SBOM", c.SBOM.Blob); err != nil {
			return err
		}
	}
	if c.Program != nil {
		return c.Program.check(has)
	}
	return nil
}

func (p *Program) check(has func(string, Blob) error) error {
	if _, ok := parseVersion(p.Version); !ok {
		return fmt.Errorf("its index is wrong: %q is no version of coracle", p.Version)
	}
	if _, ok := parseVersion(p.From); p.From != "" && !ok {
		return fmt.Errorf("its index is wrong: %q is no version of coracle", p.From)
	}
	if p.OldestLevel < 1 || p.OldestLevel > p.Level {
		return fmt.Errorf("its index is wrong: a program cannot know the levels %d to %d", p.OldestLevel, p.Level)
	}
	var names []string
	for _, b := range p.Builds {
		if !fileName.MatchString(b.Architecture) {
			return fmt.Errorf("its index is wrong: %q is no processor", b.Architecture)
		}
		if err := has("the program for "+b.Architecture, b.Packed); err != nil {
			return err
		}
		if err := b.File.check(); err != nil {
			return err
		}
		names = append(names, b.Architecture)
	}
	if name := repeated(names); name != "" || len(names) == 0 {
		return errors.New("its index is wrong: a program has one build for each processor")
	}
	return nil
}

// blobSizes returns the sizes of blobs by digest. It returns an error if they are not in the order of their digests.
func blobSizes(blobs []Blob) (map[digest.Digest]int64, error) {
	if len(blobs) > maxBlobs {
		return nil, fmt.Errorf("it has %d blobs; at most %d are allowed", len(blobs), maxBlobs)
	}
	sizes := map[digest.Digest]int64{}
	for i, b := range blobs {
		if err := b.check(); err != nil {
			return nil, err
		}
		if i > 0 && blobs[i-1].Digest >= b.Digest {
			return nil, errors.New("its index is wrong: its blobs are not in order")
		}
		sizes[b.Digest] = b.Size
	}
	return sizes, nil
}

func (b Blob) check() error {
	if b.Digest.Validate() != nil || b.Digest.Algorithm() != digest.SHA256 {
		return fmt.Errorf("its index is wrong: %q is no SHA-256 digest", b.Digest)
	}
	if b.Size < 0 || b.Size > maxBlobSize {
		return fmt.Errorf("its index is wrong: a blob cannot have %d bytes", b.Size)
	}
	return nil
}

// repeated returns a name that is in the list more than once, or "".
func repeated(names []string) string {
	sorted := slices.Sorted(slices.Values(names))
	for i := 1; i < len(sorted); i++ {
		if sorted[i] == sorted[i-1] {
			return sorted[i]
		}
	}
	return ""
}
