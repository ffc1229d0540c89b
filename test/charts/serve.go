// SPDX-License-Identifier: Apache-2.0

package charts

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/registry"
	"sigs.k8s.io/yaml"
)

// Options describe a server of charts.
type Options struct {
	// Dir has the archives (*.tgz) that are offered; it is read again for each index.
	Dir string
	// User and Password are asked for if User is not empty.
	User, Password string
}

// Handler serves the archives of a folder as a repository (/index.yaml and /NAME.tgz), and a registry that remembers
// what is pushed to it (/v2/).
func Handler(o Options) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/index.yaml", func(w http.ResponseWriter, _ *http.Request) {
		text, err := Index(o.Dir)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_, _ = w.Write(text) // the client is gone
	})
	mux.Handle("/", http.FileServer(http.Dir(o.Dir)))
	mux.Handle("/v2/", registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	if o.User == "" {
		return mux
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != o.User || password != o.Password {
			w.Header().Set("WWW-Authenticate", `Basic realm="charts"`)
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// Index returns the index of a folder's archives.
func Index(dir string) ([]byte, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.tgz"))
	if err != nil {
		return nil, err
	}
	entries := map[string][]map[string]any{}
	for _, file := range files {
		archive, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		entry, err := metadata(archive)
		if err != nil {
			continue // a broken archive lies there for a test
		}
		sum := sha256.Sum256(archive)
		entry["urls"] = []string{filepath.Base(file)}
		entry["digest"] = hex.EncodeToString(sum[:])
		name := fmt.Sprint(entry["name"])
		entries[name] = append(entries[name], entry)
	}
	return yaml.Marshal(map[string]any{"apiVersion": "v1", "entries": entries})
}

// metadata reads an archive's Chart.yaml.
func metadata(archive []byte) (map[string]any, error) {
	z, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		return nil, err
	}
	for t := tar.NewReader(z); ; {
		h, err := t.Next()
		if err != nil {
			return nil, err
		}
		if path.Base(h.Name) != "Chart.yaml" || strings.Count(h.Name, "/") != 1 {
			continue
		}
		text, err := io.ReadAll(t)
		if err != nil {
			return nil, err
		}
		entry := map[string]any{}
		return entry, yaml.Unmarshal(text, &entry)
	}
}
