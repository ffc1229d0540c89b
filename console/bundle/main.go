// SPDX-License-Identifier: Apache-2.0

// Command bundle makes the console's pages from their TypeScript sources: one script, chunks that are loaded when they
// are needed, a style sheet and the page that names them. Each file is written only in a form compressed by gzip, which
// every browser can decompress.
//
//	bundle -src console/web -out console/files
package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/evanw/esbuild/pkg/api"
)

func main() {
	src := flag.String("src", "console/web", "folder of the sources, with node_modules in it")
	out := flag.String("out", "console/files", "folder to write into; what an earlier run wrote there is removed")
	only := flag.Bool("layers", false, "only check what the sources import of each other")
	flag.Parse()
	if *only {
		if err := checkLayersOf(filepath.Join(*src, "src")); err != nil {
			fmt.Fprintf(os.Stderr, "error: the sources of the console's pages import each other in a wrong order:\n%v\n", err)
			os.Exit(1)
		}
		return
	}
	if err := bundle(*src, *out); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

// bundle writes the pages. If the sources have errors, it changes nothing.
func bundle(src, out string) error {
	src, err := filepath.Abs(src)
	if err != nil {
		return fmt.Errorf("finding the sources: %w", err)
	}
	if err := checkLayersOf(filepath.Join(src, "src")); err != nil {
		return err
	}
	result := api.Build(api.BuildOptions{
		AbsWorkingDir: src,
		EntryPoints:   []string{"src/main.tsx", "src/style.css"},
		Outdir:        filepath.Join(src, "out"), // no file is written there
		EntryNames:    "[name]", ChunkNames: "part-[hash]",
		Bundle: true, Splitting: true, Format: api.FormatESModule, Target: api.ES2022,
		MinifyWhitespace: true, MinifyIdentifiers: true, MinifySyntax: true,
		JSX: api.JSXAutomatic, JSXImportSource: "preact",
		LegalComments: api.LegalCommentsNone, // NOTICE has them
		LogLevel:      api.LogLevelWarning,
	})
	if len(result.Errors) > 0 {
		return errors.New("esbuild: the sources have errors, which are above")
	}
	page, err := os.ReadFile(filepath.Join(src, "src", "index.html"))
	if err != nil {
		return fmt.Errorf("reading the page: %w", err)
	}
	old, err := filepath.Glob(filepath.Join(out, "*.gz"))
	if err != nil {
		return fmt.Errorf("finding what an earlier run wrote: %w", err)
	}
	for _, name := range old {
		if err := os.Remove(name); err != nil {
			return fmt.Errorf("removing what an earlier run wrote: %w", err)
		}
	}
	files := map[string][]byte{"index.html": page}
	for _, f := range result.OutputFiles {
		files[filepath.Base(f.Path)] = f.Contents
	}
	for name, content := range files {
		if err := write(filepath.Join(out, name+".gz"), content); err != nil {
			return err
		}
	}
	return nil
}

// write compresses content into a file. Equal content gives equal bytes, since the header has no date.
func write(path string, content []byte) error {
	var buf bytes.Buffer
	z, err := gzip.NewWriterLevel(&buf, gzip.BestCompression)
	if err != nil {
		return fmt.Errorf("compressing: %w", err)
	}
	if _, err := z.Write(content); err != nil {
		return fmt.Errorf("compressing: %w", err)
	}
	if err := z.Close(); err != nil {
		return fmt.Errorf("compressing: %w", err)
	}
	if err := os.WriteFile(path, buf.Bytes(), 0o644); err != nil { //nolint:gosec // part of the program
		return fmt.Errorf("writing a part of the console: %w", err)
	}
	return nil
}
