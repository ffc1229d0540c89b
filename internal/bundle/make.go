// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// FATLimit is the size in bytes from which a file does not fit on a stick with FAT32.
const FATLimit = 4 << 30

// Options says what goes into a bundle.
type Options struct {
	// Name and Counter are those of the bundle.
	Name    string
	Counter int64
	// Out is the file to write. Its folder needs room for the contents twice.
	Out string
	// Programs are files with builds of one version of coracle. Facts are what that version says of itself, and Marks
	// are texts that each of its builds contains.
	Programs []string
	Facts    Facts
	Marks    []string
	// From is the oldest version that the program can replace; empty where the level alone decides.
	From string
	// Images are files with archives of images.
	Images            []string
	Charts, Manifests []string
	// SBOM is a file in the form of CycloneDX, or empty.
	SBOM string
	// Keys replaces the release keys; nil if these stay.
	Keys *NamedKeys
}

// maker collects the blobs of a bundle. Each is in a file: one of the user's, or one in a temporary folder.
type maker struct {
	dir   string
	files map[digest.Digest]string
	sizes map[digest.Digest]int64
}

// Make writes a bundle, and returns its index and its size in bytes. It works from the files alone.
func Make(ctx context.Context, o Options) (_ *Index, size int64, err error) {
	dir, err := os.MkdirTemp(filepath.Dir(o.Out), "."+filepath.Base(o.Out)+".tmp*")
	if err != nil {
		return nil, 0, fmt.Errorf("making a folder for the blobs: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	m := &maker{dir: dir, files: map[digest.Digest]string{}, sizes: map[digest.Digest]int64{}}
	x, err := m.index(ctx, o)
	if err != nil {
		return nil, 0, err
	}
	raw, err := json.MarshalIndent(x, "", " ")
	if err != nil {
		return nil, 0, err
	}
	raw = append(raw, '\n')
	if len(raw) > maxIndex {
		return nil, 0, fmt.Errorf("its index would have %d bytes, at most %d are allowed: make two bundles", len(raw), maxIndex)
	}
	if _, err := parseIndex(raw); err != nil { // what Open would refuse
		return nil, 0, fmt.Errorf("this makes no bundle: %w", err)
	}
	open := func(b Blob) (io.ReadCloser, error) { return os.Open(m.files[b.Digest]) }
	if err := writeTo(ctx, o.Out, raw, nil, x.Contents.Blobs, open); err != nil {
		return nil, 0, err
	}
	info, err := os.Stat(o.Out)
	if err != nil {
		return nil, 0, err
	}
	return x, info.Size(), nil
}

func (m *maker) index(ctx context.Context, o Options) (x *Index, err error) {
	x = &Index{MediaType: ocispec.MediaTypeImageIndex, Contents: Contents{Format: format, Name: o.Name, Counter: o.Counter, Keys: o.Keys}}
	x.SchemaVersion = 2
	c := &x.Contents
	if len(o.Programs) > 0 {
		if c.Program, err = m.program(o); err != nil {
			return nil, err
		}
	}
	if x.Manifests, err = m.images(ctx, o.Images); err != nil {
		return nil, err
	}
	if c.Charts, err = m.addFiles(o.Charts); err != nil {
		return nil, err
	}
	if c.Manifests, err = m.addFiles(o.Manifests); err != nil {
		return nil, err
	}
	if o.SBOM != "" {
		f, err := m.addFile(o.SBOM)
		if err != nil {
			return nil, err
		}
		c.SBOM = &f
	}
	for d, size := range m.sizes {
		c.Blobs = append(c.Blobs, Blob{d, size})
	}
	if len(c.Blobs) == 0 {
		return nil, errors.New("nothing was given to put into the bundle")
	}
	slices.SortFunc(c.Blobs, func(a, b Blob) int { return cmp.Compare(a.Digest, b.Digest) })
	return x, nil
}

func (m *maker) program(o Options) (*Program, error) {
	p := &Program{Facts: o.Facts, From: o.From}
	for _, file := range o.Programs {
		arch, err := architecture(file)
		if err != nil {
			return nil, err
		}
		ok, err := containsAll(file, o.Marks)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", file, err)
		}
		if !ok {
			return nil, fmt.Errorf("%s is no build of coracle %s: a bundle is made by the version of coracle that it has", file, o.Facts.Version)
		}
		if p.Build(arch) != nil {
			return nil, fmt.Errorf("%s is a second program for %s", file, arch)
		}
		to := filepath.Join(m.dir, arch+".gz")
		plain, packed, err := pack(file, to)
		if err != nil {
			return nil, fmt.Errorf("packing %s: %w", file, err)
		}
		m.add(packed, to)
		p.Builds = append(p.Builds, Build{Architecture: arch, File: plain, Packed: packed})
	}
	slices.SortFunc(p.Builds, func(a, b Build) int { return cmp.Compare(a.Architecture, b.Architecture) })
	return p, nil
}

// images reads the archives. Names that archives share have to be of the same image.
func (m *maker) images(ctx context.Context, files []string) ([]ocispec.Descriptor, error) {
	if len(files) == 0 {
		return []ocispec.Descriptor{}, nil // a list has to be there
	}
	store := folderStore{dir: m.dir}
	byName := map[string]ocispec.Descriptor{}
	for _, file := range files {
		found, err := readArchive(ctx, store, file, func(d ocispec.Descriptor) {
			m.add(Blob{d.Digest, d.Size}, store.path(d.Digest))
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		for _, d := range found {
			name := d.Annotations[ocispec.AnnotationRefName]
			if other, ok := byName[name]; ok && other.Digest != d.Digest {
				return nil, fmt.Errorf("%s has another image %s than an archive before it: a name can be of one image only", file, name)
			}
			byName[name] = d
		}
	}
	var out []ocispec.Descriptor
	for _, d := range byName {
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b ocispec.Descriptor) int {
		return cmp.Compare(a.Annotations[ocispec.AnnotationRefName], b.Annotations[ocispec.AnnotationRefName])
	})
	return out, nil
}

func (m *maker) add(b Blob, file string) { m.files[b.Digest], m.sizes[b.Digest] = file, b.Size }

func (m *maker) addFiles(paths []string) (out []File, err error) {
	for _, path := range paths {
		f, err := m.addFile(path)
		if err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b File) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

func (m *maker) addFile(path string) (File, error) {
	f, err := os.Open(path)
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	sum := digest.SHA256.Digester()
	n, err := io.Copy(sum.Hash(), f)
	if err != nil {
		return File{}, fmt.Errorf("reading %s: %w", path, err)
	}
	b := Blob{sum.Digest(), n}
	m.add(b, path)
	return File{filepath.Base(path), b}, nil
}
