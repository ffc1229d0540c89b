// SPDX-License-Identifier: Apache-2.0

// Package imagetar writes small container images as docker-archive tar files. `docker load`, `ctr images import` and
// the agent's images folder read this form. Coracle needs it for its embedded pause image, and its tests build their
// images with it: in both cases there is no registry.
//
// The same Image always gives the same bytes: times are zero and files come in path order, so an archive can be
// recognised by its hash. The package uses the standard library only and never reads a registry or a running daemon.
package imagetar

import (
	"archive/tar"
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Image is one single-layer image.
type Image struct {
	// Name is the full reference, registry host and tag included: "docker.io/library/hello:1".
	Name string
	// Architecture is Go's name of the processor architecture; the running program's when empty.
	Architecture string
	// Entrypoint and Cmd are the program and its default arguments.
	Entrypoint, Cmd []string
	// Env holds NAME=VALUE.
	Env []string
	// User is "uid", "uid:gid" or a name in the image's /etc/passwd; root when empty.
	User string
	// WorkingDir is the directory in which the program starts; / when empty.
	WorkingDir string
	// Labels are the labels in the image's configuration.
	Labels map[string]string
	// Files make the only layer. Missing parent directories are added with mode 0755.
	Files []File
}

// File is one entry of the layer: a regular file, a directory or a symbolic link.
type File struct {
	// Path is the path in the image, with or without the leading slash.
	Path string
	// Mode holds the permission bits, and fs.ModeDir for a directory. Zero means 0644, or 0755 for a directory.
	Mode fs.FileMode
	// Body is the content. Source names a file of this machine whose content is used instead.
	Body   []byte
	Source string
	// Link makes the entry a symbolic link to this target.
	Link string
	// UID and GID own the entry.
	UID, GID int
}

type manifestEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

type imageConfig struct {
	Architecture string        `json:"architecture"`
	OS           string        `json:"os"`
	Created      string        `json:"created"`
	Config       runConfig     `json:"config"`
	RootFS       rootFS        `json:"rootfs"`
	History      []historyItem `json:"history"`
}

type runConfig struct {
	User       string            `json:"User,omitempty"`
	Env        []string          `json:"Env,omitempty"`
	Entrypoint []string          `json:"Entrypoint,omitempty"`
	Cmd        []string          `json:"Cmd,omitempty"`
	WorkingDir string            `json:"WorkingDir,omitempty"`
	Labels     map[string]string `json:"Labels,omitempty"`
}

type rootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

type historyItem struct {
	Created   string `json:"created"`
	CreatedBy string `json:"created_by"`
}

const epoch = "1970-01-01T00:00:00Z"

// Write writes the images as one docker-archive to w. Layers are built in memory, so images should have some megabytes
// at most.
func Write(w io.Writer, images ...Image) error {
	if len(images) == 0 {
		return errors.New("imagetar: no image to write")
	}
	tw := tar.NewWriter(w)
	var manifest []manifestEntry
	written := map[string]bool{}
	for _, im := range images {
		entry, blobs, err := build(im)
		if err != nil {
			return fmt.Errorf("imagetar: image %q: %w", im.Name, err)
		}
		for _, b := range blobs {
			if written[b.name] {
				continue
			}
			written[b.name] = true
			if err := writeFile(tw, b.name, b.data); err != nil {
				return err
			}
		}
		manifest = append(manifest, entry)
	}
	data, err := json.Marshal(manifest)
	if err != nil {
		return fmt.Errorf("imagetar: encode manifest: %w", err)
	}
	if err := writeFile(tw, "manifest.json", data); err != nil {
		return err
	}
	return tw.Close()
}

type blob struct {
	name string
	data []byte
}

// build returns the layer and the configuration of one image. Both are named by their hash.
func build(im Image) (manifestEntry, []blob, error) {
	if !strings.Contains(im.Name, ":") {
		return manifestEntry{}, nil, errors.New("the name needs a tag, like docker.io/library/hello:1")
	}
	layer, err := layerTar(im.Files)
	if err != nil {
		return manifestEntry{}, nil, err
	}
	layerID := hexSum(layer)
	config, err := json.Marshal(imageConfig{
		Architecture: cmp.Or(im.Architecture, runtime.GOARCH), OS: "linux", Created: epoch,
		Config: runConfig{
			User: im.User, Env: im.Env, Entrypoint: im.Entrypoint, Cmd: im.Cmd, WorkingDir: im.WorkingDir, Labels: im.Labels,
		},
		RootFS:  rootFS{Type: "layers", DiffIDs: []string{"sha256:" + layerID}},
		History: []historyItem{{Created: epoch, CreatedBy: "coracle imagetar"}},
	})
	if err != nil {
		return manifestEntry{}, nil, fmt.Errorf("encode configuration: %w", err)
	}
	c := blob{hexSum(config) + ".json", config}
	l := blob{layerID + "/layer.tar", layer}
	return manifestEntry{Config: c.name, RepoTags: []string{im.Name}, Layers: []string{l.name}}, []blob{l, c}, nil
}

// layerTar packs the files in path order, so that parents precede children and the bytes do not depend on the caller's
// order.
func layerTar(files []File) ([]byte, error) {
	entries := map[string]File{}
	for _, f := range files {
		p := strings.TrimPrefix(path.Clean("/"+f.Path), "/")
		if p == "" {
			return nil, fmt.Errorf("file path %q names the root", f.Path)
		}
		if _, dup := entries[p]; dup {
			return nil, fmt.Errorf("file %q is listed twice", f.Path)
		}
		entries[p] = f
	}
	for p := range entries {
		for d := path.Dir(p); d != "."; d = path.Dir(d) {
			if _, ok := entries[d]; !ok {
				entries[d] = File{Path: d, Mode: fs.ModeDir | 0o755}
			}
		}
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, p := range slices.Sorted(maps.Keys(entries)) {
		if err := writeEntry(tw, p, entries[p]); err != nil {
			return nil, err
		}
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

func writeEntry(tw *tar.Writer, p string, f File) error {
	h := &tar.Header{Name: p, ModTime: time.Unix(0, 0), Uid: f.UID, Gid: f.GID, Format: tar.FormatPAX}
	perm := tarMode(f.Mode)
	body := f.Body
	switch {
	case f.Link != "":
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.Link, 0o777
		body = nil
	case f.Mode.IsDir():
		h.Typeflag, h.Name, h.Mode = tar.TypeDir, p+"/", cmp.Or(perm, 0o755)
		body = nil
	default:
		if f.Source != "" {
			data, err := os.ReadFile(f.Source)
			if err != nil {
				return fmt.Errorf("read the content of %q: %w", p, err)
			}
			body = data
		}
		h.Typeflag, h.Mode, h.Size = tar.TypeReg, cmp.Or(perm, 0o644), int64(len(body))
	}
	if err := tw.WriteHeader(h); err != nil {
		return fmt.Errorf("write the header of %q: %w", p, err)
	}
	if _, err := tw.Write(body); err != nil {
		return fmt.Errorf("write %q: %w", p, err)
	}
	return nil
}

func writeFile(tw *tar.Writer, name string, data []byte) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data)), ModTime: time.Unix(0, 0)}
	if err := tw.WriteHeader(h); err != nil {
		return fmt.Errorf("imagetar: write header of %s: %w", name, err)
	}
	if _, err := tw.Write(data); err != nil {
		return fmt.Errorf("imagetar: write %s: %w", name, err)
	}
	return nil
}

// tarMode converts the mode for tar. fs.FileMode has the set-id and sticky bits in other positions than Unix and tar.
func tarMode(m fs.FileMode) int64 {
	mode := int64(m.Perm())
	if m&fs.ModeSetuid != 0 {
		mode |= 0o4000
	}
	if m&fs.ModeSetgid != 0 {
		mode |= 0o2000
	}
	if m&fs.ModeSticky != 0 {
		mode |= 0o1000
	}
	return mode
}

func hexSum(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
