// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/coracle-k8s/coracle/internal/embedded/index"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// testSources are sources in a folder of their own: the test's own program stands for each Go program.
func testSources(t *testing.T) sources {
	t.Helper()
	dir := t.TempDir()
	own := testenv.Must(os.ReadFile(testenv.Must(os.Executable())(t)))(t)
	write := func(name string, data []byte) string {
		file := filepath.Join(dir, name)
		testenv.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		testenv.NoError(t, os.WriteFile(file, data, 0o755))
		return file
	}
	var x index.Index
	for _, name := range append([]string{"nft"}, goPrograms...) {
		write("set/"+name, own)
		x = append(x, index.Entry{Path: name, Mode: 0o555, Size: int64(len(own)), SHA256: sha256Hex(own)})
	}
	x = append(x, index.Entry{Path: "coracle-cni", Link: "coracle-helper"})
	write("set/"+index.FileName, x.Encode())
	return sources{
		program: write("coracle", own), name: "coracle", version: "v1.37.0+coracle1", arch: "amd64", set: filepath.Join(dir, "set"),
		debian: []string{write("packages", []byte("libgmp10 2:6.2.1+dfsg1-1.1 source gmp 2:6.2.1+dfsg1-1.1\n"))},
		tools:  write("tools", []byte("gcc-12 12.2.0-14+deb12u1 source gcc-12 12.2.0-14+deb12u1\n")),
		npm: write("package-lock.json", []byte(`{"packages": {"": {}, "node_modules/@a/b": {"version": "1.0.0", "license": "MIT"},
			"node_modules/typescript": {"version": "7.0.2", "dev": true}}}`)),
	}
}

func encoded(t *testing.T, s sources) []byte {
	t.Helper()
	var text bytes.Buffer
	testenv.NoError(t, testenv.Must(s.bill())(t).encode(&text))
	return text.Bytes()
}

func TestBillIsValidAndNamesEachPart(t *testing.T) {
	s := testSources(t)
	text := encoded(t, s)
	testenv.True(t, bytes.Equal(text, encoded(t, s)), "the same sources gave two bills")

	// The schemas are those of CycloneDX in the module; one names the other by its address.
	folder := strings.TrimSpace(string(testenv.Must(exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/CycloneDX/cyclonedx-go").Output())(t)))
	compiler := jsonschema.NewCompiler()
	for _, name := range []string{"bom-1.6.schema.json", "spdx.schema.json", "jsf-0.82.schemax.json"} {
		schema := testenv.Must(jsonschema.UnmarshalJSON(bytes.NewReader(testenv.Must(os.ReadFile(filepath.Join(folder, "schema", name)))(t))))(t)
		testenv.NoError(t, compiler.AddResource("http://cyclonedx.org/schema/"+strings.Replace(name, "schemax", "schema", 1), schema))
	}
	schema := testenv.Must(compiler.Compile("http://cyclonedx.org/schema/bom-1.6.schema.json"))(t)
	testenv.NoError(t, schema.Validate(testenv.Must(jsonschema.UnmarshalJSON(bytes.NewReader(text)))(t)))

	var bom cdx.BOM
	testenv.NoError(t, json.Unmarshal(text, &bom))
	var names []string
	for _, c := range *bom.Components {
		names = append(names, c.BOMRef)
	}
	for _, want := range []string{
		"embedded/runc", "embedded/nft", "pkg:golang/github.com/cyclonedx/cyclonedx-go@v0.12.0", "pkg:npm/%40a/b@1.0.0",
		"pkg:deb/debian/libgmp10@2%3A6.2.1%2Bdfsg1-1.1?arch=amd64",
	} {
		testenv.True(t, slices.Contains(names, want), "the bill lacks %s: %v", want, names)
	}
	testenv.True(t, !strings.Contains(string(text), "typescript"), "the bill has a package that is only used to build")
	testenv.True(t, bom.SerialNumber == "" && bom.Metadata.Timestamp == "", "the bill has something of chance or of the clock")
	for _, d := range *bom.Dependencies {
		if d.Ref == "embedded/runc" {
			testenv.True(t, slices.Contains(*d.Dependencies, "pkg:golang/github.com/cyclonedx/cyclonedx-go@v0.12.0"), "runc lacks its modules")
			return
		}
	}
	t.Error("the bill does not say what runc needs")
}

func TestBillWithoutAPartIsRefused(t *testing.T) {
	for name, spoil := range map[string]func(s *sources){
		"runc": func(s *sources) {
			text := testenv.Must(os.ReadFile(filepath.Join(s.set, index.FileName)))(t)
			x := slices.DeleteFunc(testenv.Must(index.Parse(text))(t), func(e index.Entry) bool { return e.Path == "runc" })
			testenv.NoError(t, os.WriteFile(filepath.Join(s.set, index.FileName), x.Encode(), 0o644))
		},
		"lists no package":  func(s *sources) { testenv.NoError(t, os.WriteFile(s.tools, nil, 0o644)) },
		"is not name":       func(s *sources) { testenv.NoError(t, os.WriteFile(s.debian[0], []byte("libc6 2.36\n"), 0o644)) },
		"build information": func(s *sources) { s.program = s.npm },
		"has no packages":   func(s *sources) { testenv.NoError(t, os.WriteFile(s.npm, []byte("{}"), 0o644)) },
	} {
		s := testSources(t)
		spoil(&s)
		_, err := s.bill()
		testenv.True(t, err != nil && strings.Contains(err.Error(), name), "%s: %v", name, err)
	}
}
