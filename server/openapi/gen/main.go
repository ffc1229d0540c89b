// SPDX-License-Identifier: Apache-2.0

// Command gen converts the OpenAPI documents in the k8s.io/kubernetes module, and that of the metrics API, into the
// artifact that the server embeds. Run it with go generate after a change of a version of these modules.
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/kube-openapi/pkg/handler"
	"k8s.io/kube-openapi/pkg/handler3"

	"github.com/coracle-k8s/coracle/server/openapi/artifact"
)

// dictionary is the document that has the most in common with the others for its size.
const dictionary = "apis/batch/v1"

func main() {
	log.SetFlags(0)
	out := flag.String("o", "documents.bin", "file to write")
	flag.Parse()
	if err := run(*out); err != nil {
		log.Fatalf("gen: %v", err)
	}
}

func run(out string) error {
	module, err := exec.Command("go", "list", "-m", "-f", "{{.Version}} {{.Dir}}", "k8s.io/kubernetes").Output()
	if err != nil {
		return fmt.Errorf("finding the k8s.io/kubernetes module: %w", err)
	}
	version, dir, _ := strings.Cut(strings.TrimSpace(string(module)), " ")
	if dir == "" {
		return fmt.Errorf("module k8s.io/kubernetes %s is not on this disk: run go mod download", version)
	}
	docs, err := readV3(filepath.Join(dir, "api", "openapi-spec", "v3"), version)
	if err != nil {
		return err
	}
	metricsV2, metricsV3, err := metricsDocuments(version)
	if err != nil {
		return fmt.Errorf("describing the metrics API: %w", err)
	}
	docs[metricsDocument] = metricsV3
	if docs[dictionary] == nil {
		return fmt.Errorf("no document %s to use as dictionary", dictionary)
	}
	w := artifact.NewWriter(version, dictionary, docs[dictionary])
	for _, name := range slices.Sorted(maps.Keys(docs)) {
		if err := addV3(w, name, docs[name]); err != nil {
			return fmt.Errorf("document %s: %w", name, err)
		}
	}
	swagger, err := os.ReadFile(filepath.Join(dir, "api", "openapi-spec", "swagger.json"))
	if err != nil {
		return fmt.Errorf("reading the v2 document: %w", err)
	}
	if err := addV2(w, swagger, metricsV2, version); err != nil {
		return fmt.Errorf("v2 document: %w", err)
	}
	data, err := w.Bytes()
	if err != nil {
		return err
	}
	return os.WriteFile(out, data, 0o644)
}

// readV3 returns the documents by the name under which /openapi/v3 lists them.
func readV3(dir, version string) (map[string][]byte, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*_openapi.json"))
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("no documents in %s (%w)", dir, err)
	}
	docs := map[string][]byte{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		name := strings.TrimSuffix(filepath.Base(file), "_openapi.json")
		name = strings.ReplaceAll(name, "__", "/")
		if data, err = withVersion(data, version); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		docs[name] = data
	}
	return docs, nil
}

// withVersion compacts a document and replaces the version "unversioned" of upstream's build.
func withVersion(data []byte, version string) ([]byte, error) {
	var b bytes.Buffer
	if err := json.Compact(&b, data); err != nil {
		return nil, err
	}
	old, now := []byte(`"version":"unversioned"`), []byte(`"version":"`+version+`"`)
	return bytes.Replace(b.Bytes(), old, now, 1), nil
}

func hash(data []byte) string {
	return fmt.Sprintf("%X", sha256.Sum256(data))
}

func addV3(w *artifact.Writer, name string, data []byte) error {
	doc := artifact.Document{Hash: hash(data)}
	var err error
	if name == dictionary {
		doc.JSON, err = w.AddDictionary()
	} else {
		doc.JSON, err = w.Add(data)
	}
	if err != nil {
		return err
	}
	proto, err := handler3.ToV3ProtoBinary(data)
	if err != nil {
		return err
	}
	if doc.Protobuf, err = w.Add(proto); err != nil {
		return err
	}
	w.Index.Documents[name] = doc
	return nil
}

// swagger is a v2 document with its members not decoded.
type swagger map[string]json.RawMessage

func addV2(w *artifact.Writer, data, metrics []byte, version string) error {
	data, err := withVersion(data, version)
	if err != nil {
		return err
	}
	var doc swagger
	if err := json.Unmarshal(data, &doc); err != nil {
		return err
	}
	members := map[string]map[string]json.RawMessage{}
	for _, name := range []string{"definitions", "parameters", "paths"} {
		m := map[string]json.RawMessage{}
		if err := json.Unmarshal(doc[name], &m); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		members[name] = m
		delete(doc, name)
	}
	if err := join(members, metrics); err != nil {
		return fmt.Errorf("that of the metrics API: %w", err)
	}
	v2 := &w.Index.V2
	v2.Hash = hash(slices.Concat(data, metrics))
	names := slices.Concat(slices.Sorted(maps.Keys(members["definitions"])), slices.Sorted(maps.Keys(members["parameters"])))
	if v2.Names, err = w.Add([]byte(strings.Join(names, "\n"))); err != nil {
		return err
	}
	groups := byGroup(members["paths"])
	if err := addV2JSON(w, doc, members, groups); err != nil {
		return err
	}
	return addV2Protobuf(w, doc, members, groups)
}

// byGroup groups paths by the group version or group that serves them.
func byGroup(paths map[string]json.RawMessage) map[string]map[string]json.RawMessage {
	groups := map[string]map[string]json.RawMessage{}
	for path, item := range paths {
		name := artifact.Owner(path)
		if groups[name] == nil {
			groups[name] = map[string]json.RawMessage{}
		}
		groups[name][path] = item
	}
	return groups
}

func addV2JSON(w *artifact.Writer, doc swagger, members map[string]map[string]json.RawMessage,
	groups map[string]map[string]json.RawMessage) error {
	var b bytes.Buffer
	section := func(name string, m map[string]json.RawMessage) (artifact.Section, error) {
		data, err := json.Marshal(m)
		if err != nil {
			return artifact.Section{}, err
		}
		p := artifact.Section{Name: name, Offset: b.Len(), Length: len(data) - 2}
		b.Write(data[1 : len(data)-1])
		return p, nil
	}
	v2 := &w.Index.V2
	var err error
	if v2.Definitions, err = section("", members["definitions"]); err != nil {
		return err
	}
	if v2.Parameters, err = section("", members["parameters"]); err != nil {
		return err
	}
	if v2.Header, err = section("", doc); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(groups)) {
		p, err := section(name, groups[name])
		if err != nil {
			return err
		}
		v2.Paths = append(v2.Paths, p)
	}
	v2.JSON, err = w.Add(b.Bytes())
	return err
}

func addV2Protobuf(w *artifact.Writer, doc swagger, members map[string]map[string]json.RawMessage,
	groups map[string]map[string]json.RawMessage) error {
	var b []byte
	section := func(name string, doc map[string]any) (artifact.Section, error) {
		data, err := json.Marshal(doc)
		if err != nil {
			return artifact.Section{}, err
		}
		proto, err := handler.ToProtoBinary(data)
		if err != nil {
			return artifact.Section{}, err
		}
		p := artifact.Section{Name: name, Offset: len(b), Length: len(proto)}
		b = append(b, proto...)
		return p, nil
	}
	base := map[string]any{"definitions": members["definitions"], "parameters": members["parameters"], "paths": map[string]any{}}
	for k, v := range doc {
		base[k] = v
	}
	v2 := &w.Index.V2
	var err error
	if v2.ProtobufBase, err = section("", base); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(groups)) {
		p, err := section(name, map[string]any{"swagger": doc["swagger"], "info": doc["info"], "paths": groups[name]})
		if err != nil {
			return fmt.Errorf("paths of %q: %w", name, err)
		}
		v2.ProtobufPaths = append(v2.ProtobufPaths, p)
	}
	v2.Protobuf, err = w.Add(b)
	return err
}
