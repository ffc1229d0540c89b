// SPDX-License-Identifier: Apache-2.0

// Pack turns a folder of built programs into the set that coracle embeds: the files and an index. It runs on the
// building machine only (packaging/embedded.sh).
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/coracle-k8s/coracle/internal/embedded/index"
	"github.com/coracle-k8s/coracle/internal/imagetar"
)

// pauseUser is the user and group of the pause program. Kubernetes' own pause image has 65535, which systemd takes for
// no user: it would leave pause running while it shuts the machine down.
const pauseUser = "65534:65534"

func main() {
	stage := flag.String("stage", "", "folder with the programs")
	out := flag.String("out", "", "folder to write the set to")
	pause := flag.String("pause", "", "the pause program, to be put into an image as STAGE/pause.tar")
	name := flag.String("pause-image", "", "the image's name")
	arch := flag.String("arch", "", "the image's processor, in Go's words")
	flag.Parse()
	err := pauseImage(*pause, *name, *arch, filepath.Join(*stage, "pause.tar"))
	if err == nil {
		err = pack(*stage, *out)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "pack:", err)
		os.Exit(1)
	}
}

func pauseImage(program, name, arch, dst string) error {
	f, err := os.Create(dst)
	if err != nil {
		return err
	}
	err = imagetar.Write(f, imagetar.Image{
		Name: name, Architecture: arch, User: pauseUser, Entrypoint: []string{"/pause"},
		Files: []imagetar.File{{Path: "pause", Mode: 0o555, Source: program}},
	})
	return errors.Join(err, f.Close())
}

// pack copies what is new, removes what is gone, and writes the index last.
func pack(stage, out string) error {
	x, err := list(stage)
	if err != nil {
		return err
	}
	want := map[string]bool{filepath.Join(out, "README"): true, filepath.Join(out, index.FileName): true}
	for _, e := range x {
		if e.Link != "" {
			continue
		}
		dst := filepath.Join(out, e.Path)
		want[dst] = true
		if err := copyIfDifferent(filepath.Join(stage, e.Path), dst); err != nil {
			return err
		}
	}
	if err := removeOthers(out, want); err != nil {
		return err
	}
	return writeIfDifferent(filepath.Join(out, index.FileName), x.Encode())
}

func list(stage string) (index.Index, error) {
	var x index.Index
	err := filepath.WalkDir(stage, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(stage, p)
		if err != nil {
			return err
		}
		e := index.Entry{Path: filepath.ToSlash(rel)}
		if d.Type() == fs.ModeSymlink {
			e.Link, err = os.Readlink(p)
		} else {
			err = describe(p, &e)
		}
		x = append(x, e)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list the programs: %w", err)
	}
	// What was written has to be readable: a bad name or link is found here, not on a user's machine.
	return index.Parse(x.Encode())
}

func describe(p string, e *index.Entry) error {
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	sum := sha256.New()
	if e.Size, err = io.Copy(sum, f); err != nil {
		return err
	}
	e.SHA256 = hex.EncodeToString(sum.Sum(nil))
	e.Mode = 0o444 // never writable: these are what pods run on
	if fi.Mode()&0o100 != 0 {
		e.Mode = 0o555 // whatever the umask of who built it
	}
	return nil
}

func copyIfDifferent(src, dst string) error {
	data, err := os.ReadFile(src)
	if err != nil {
		return err
	}
	return writeIfDifferent(dst, data)
}

// writeIfDifferent leaves an equal file alone, so that Go's build cache stays warm.
func writeIfDifferent(dst string, data []byte) error {
	old, err := os.ReadFile(dst)
	if err == nil && string(old) == string(data) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return err
	}
	return os.WriteFile(dst, data, 0o644)
}

func removeOthers(out string, want map[string]bool) error {
	return filepath.WalkDir(out, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || want[p] {
			return err
		}
		return os.Remove(p)
	})
}
