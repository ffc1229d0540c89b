// SPDX-License-Identifier: Apache-2.0

package console

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"path"
	"strings"
)

// built holds the pages, which `make embedded` writes. A program that was built without them holds none.
//
//go:embed all:files
var built embed.FS

var errNoPages = errors.New("this program was built without the console's pages, since npm was missing: " +
	"install npm, then make build; releases have them")

// Built says whether this program has the console's pages.
func Built() bool {
	_, err := fs.Stat(built, "files/index.html.gz")
	return err == nil
}

// digest returns a hash of all files, so that it differs between versions of the pages. It reads them once.
func digest(files fs.FS) string {
	sum := sha256.New()
	err := fs.WalkDir(files, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := fs.ReadFile(files, name)
		_, _ = fmt.Fprintf(sum, "%s %d\n%s", name, len(content), content) // never fails
		return err
	})
	if err != nil {
		return "" // no page compares with it
	}
	return hex.EncodeToString(sum.Sum(nil)[:8])
}

// serveFile answers with one of the pages' files in its stored form, which is compressed.
func (h *Handler) serveFile(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		answerError(w, http.StatusMethodNotAllowed, "a page can only be read")
		return
	}
	name := strings.TrimPrefix(r.URL.Path, "/")
	name = cmp.Or(name, "index.html")
	content, err := fs.ReadFile(h.o.Files, name+".gz")
	if err != nil {
		answerError(w, http.StatusNotFound, "the console has no such page")
		return
	}
	w.Header().Set("Content-Type", mime.TypeByExtension(path.Ext(name)))
	if !strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		z, err := gzip.NewReader(bytes.NewReader(content))
		if err != nil {
			answerError(w, http.StatusInternalServerError, "this file of the console is damaged: install coracle again")
			return
		}
		_, _ = io.Copy(w, z) // a failed write: the browser has disconnected
		return
	}
	w.Header().Set("Content-Encoding", "gzip")
	_, _ = w.Write(content)
}
