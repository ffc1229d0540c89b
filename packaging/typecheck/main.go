// SPDX-License-Identifier: Apache-2.0

// Command typecheck checks the types of all our packages as the compiler for another processor would, dependencies
// included, without generating code: in seconds what a second build of everything takes a quarter of an hour for.
// It reads declarations only in what is not ours. It does not assemble or link; make release does.
//
//	typecheck -arch arm64 [-tags ...] ./...
//
// Its goroutines: one for each package that is read.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
)

// listed is what `go list -deps -json` says of a package. A package comes after those that it imports.
type listed struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	CgoFiles   []string
	ImportMap  map[string]string
	Module     *struct {
		Main      bool
		GoVersion string
	}
	Error *struct{ Err string }
}

// checker holds what has been checked so far.
type checker struct {
	arch string
	fset *token.FileSet
	done map[string]*types.Package
	bad  int
	ours int
}

func main() {
	arch := flag.String("arch", "arm64", "the processor, by Go's name")
	tags := flag.String("tags", "", "build tags")
	flag.Parse()
	c := &checker{arch: *arch, fset: token.NewFileSet(), done: map[string]*types.Package{"unsafe": types.Unsafe}}
	if err := c.run(*tags, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "typecheck:", err)
		os.Exit(1)
	}
	fmt.Printf("types of %d packages, and of the %d that they need, are right for %s\n", c.ours, len(c.done)-c.ours, c.arch)
}

func (c *checker) run(tags string, patterns []string) error {
	args := append([]string{"list", "-deps", "-tags", tags, "-json=ImportPath,Dir,GoFiles,CgoFiles,ImportMap,Module,Error"}, patterns...)
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH="+c.arch, "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return err
	}
	for d := json.NewDecoder(out); ; {
		var p listed
		if err := d.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			return fmt.Errorf("read go list's answer: %w", err)
		}
		if err := c.check(p); err != nil {
			return err
		}
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("go list: %w", err)
	}
	switch {
	case c.bad > 0:
		return fmt.Errorf("%d errors", c.bad)
	case c.ours == 0:
		return errors.New("none of our packages was found")
	}
	return nil
}

func (c *checker) check(p listed) error {
	if p.ImportPath == "unsafe" {
		return nil
	}
	if p.Error != nil {
		return fmt.Errorf("%s: %s", p.ImportPath, p.Error.Err)
	}
	ours := p.Module != nil && p.Module.Main
	files, err := c.parse(p)
	if err != nil {
		return err
	}
	config := types.Config{
		Importer: importer{c, p.ImportMap}, Sizes: types.SizesFor("gc", c.arch), IgnoreFuncBodies: !ours,
		Error: func(err error) {
			if ours {
				c.bad++
				fmt.Fprintln(os.Stderr, err)
			}
		},
	}
	if p.Module != nil && p.Module.GoVersion != "" {
		config.GoVersion = "go" + p.Module.GoVersion
	}
	pkg, err := config.Check(p.ImportPath, c.fset, files, nil)
	if err != nil && !ours {
		return fmt.Errorf("%s: %w", p.ImportPath, err) // it compiles elsewhere, so this checker is at fault
	}
	if ours {
		c.ours++
	}
	c.done[p.ImportPath] = pkg
	return nil
}

// parse reads the package's files, several at once.
func (c *checker) parse(p listed) ([]*ast.File, error) {
	files, errs := make([]*ast.File, len(p.GoFiles)), make([]error, len(p.GoFiles))
	var reading sync.WaitGroup
	for i, name := range p.GoFiles {
		reading.Go(func() {
			files[i], errs[i] = parser.ParseFile(c.fset, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
		})
	}
	reading.Wait()
	return files, errors.Join(errs...)
}

// importer finds a package among those that have been checked.
type importer struct {
	c     *checker
	names map[string]string // vendored packages of the standard library
}

func (i importer) Import(path string) (*types.Package, error) {
	if real, ok := i.names[path]; ok {
		path = real
	}
	if pkg := i.c.done[path]; pkg != nil {
		return pkg, nil
	}
	return nil, fmt.Errorf("%s has not been checked before", path)
}
