// SPDX-License-Identifier: Apache-2.0

package openapi

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/munnerz/goautoneg"
)

// media is the format of a document.
type media int

const (
	mediaJSON media = iota
	mediaProtobuf
)

// negotiate chooses the format and its content type. Clients request protobuf under two names, one of which is not a
// valid media type. Responses use the valid one, as upstream's do.
func negotiate(accept, version string) (m media, contentType string, ok bool) {
	accept = cmp.Or(accept, "*/*")
	protobuf := "com.github.proto-openapi.spec." + version + ".v1.0+protobuf"
	deprecated := "com.github.proto-openapi.spec." + version + "@v1.0+protobuf"
	for _, clause := range goautoneg.ParseAccept(accept) {
		if clause.Type != "application" && clause.Type != "*" {
			continue
		}
		switch clause.SubType {
		case "json", "*":
			return mediaJSON, "application/json", true
		case protobuf, deprecated:
			return mediaProtobuf, "application/" + protobuf, true
		}
	}
	return 0, "", false
}

// documentURL returns the URL of a v3 document with this content.
func documentURL(name, hash string) string {
	u := url.URL{Path: path.Join("/openapi/v3", name), RawQuery: url.Values{"hash": {hash}}.Encode()}
	return u.String()
}

func contentHash(parts ...[]byte) string {
	sum := sha256.New()
	for _, p := range parts {
		sum.Write(p)
	}
	return fmt.Sprintf("%X", sum.Sum(nil))
}

// responseHead is the part of a response that is known before its body is built.
type responseHead struct {
	contentType string
	etag        string
	immutable   time.Time // when set, the URL's content never changes after this time
}

// serve writes a response. It answers a conditional request without calling build if possible.
func serve(w http.ResponseWriter, r *http.Request, a responseHead, build func() ([]byte, error)) error {
	header := w.Header()
	etag := strconv.Quote(a.etag)
	header.Set("Etag", etag)
	if !a.immutable.IsZero() {
		header.Set("Cache-Control", "public, immutable")
		header.Set("Expires", a.immutable.AddDate(1, 0, 0).UTC().Format(http.TimeFormat))
	}
	for candidate := range strings.SplitSeq(r.Header.Get("If-None-Match"), ",") {
		candidate = strings.TrimPrefix(strings.TrimSpace(candidate), "W/")
		if candidate == etag || candidate == "*" {
			w.WriteHeader(http.StatusNotModified)
			return nil
		}
	}
	body, err := build()
	if err != nil {
		for _, name := range []string{"Etag", "Cache-Control", "Expires"} {
			header.Del(name)
		}
		return err
	}
	header.Set("Content-Type", a.contentType)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
	return nil
}
