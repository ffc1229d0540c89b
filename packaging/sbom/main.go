// SPDX-License-Identifier: Apache-2.0

// Command sbom writes the software bill of materials of a program of a release, in CycloneDX's JSON: the Go modules of
// the program and of the programs embedded in it, as their build information names them, the packages of Debian that
// are embedded or linked, and those of npm that the console's pages are made of. Nothing in it comes from the clock or
// from chance: the same release has the same bytes. It runs on the building machine only (make release).
//
//	sbom -program FILE -name NAME -version VERSION -arch ARCH -set FOLDER -debian FILE,... -tools FILE -npm FILE -out FILE
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strings"
)

// sources are what a bill is made from.
type sources struct {
	program, name, version, arch string
	// set is the folder with the embedded files and their INDEX (packaging/pack).
	set string
	// debian are lists of packages whose files are embedded or linked, tools is one of those that the compiler is from,
	// in the form of packaging/debs.sh: name, version, "source", name and version of the source package.
	debian []string
	tools  string
	// npm is a package-lock.json.
	npm string
}

func main() {
	var s sources
	flag.StringVar(&s.program, "program", "", "the program")
	flag.StringVar(&s.name, "name", "coracle", "its name")
	flag.StringVar(&s.version, "version", "", "its version")
	flag.StringVar(&s.arch, "arch", "", "its processor, in Go's words")
	flag.StringVar(&s.set, "set", "", "folder with the embedded files and their INDEX")
	debian := flag.String("debian", "", "lists of Debian packages whose files are in the program, with commas between")
	flag.StringVar(&s.tools, "tools", "", "list of the Debian packages that the C compiler is from")
	flag.StringVar(&s.npm, "npm", "", "package-lock.json of the console's pages")
	out := flag.String("out", "", "the file to write")
	flag.Parse()
	s.debian = strings.Split(*debian, ",")
	if err := run(s, *out); err != nil {
		fmt.Fprintln(os.Stderr, "error: the software bill of materials:", err)
		os.Exit(1)
	}
}

func run(s sources, out string) error {
	b, err := s.bill()
	if err != nil {
		return err
	}
	var text bytes.Buffer
	if err := b.encode(&text); err != nil {
		return err
	}
	return os.WriteFile(out, text.Bytes(), 0o644)
}
