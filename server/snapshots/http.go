// SPDX-License-Identifier: Apache-2.0

package snapshots

import (
	"encoding/json"
	"net/http"
	"strconv"
)

// Path is where a Handler serves on the admin socket.
const Path = "/v1/snapshots"

// Removed is the response to requests that remove snapshots.
type Removed struct {
	Deleted []string `json:"deleted"`
	// Problem says which snapshots could not be removed, and why.
	Problem string `json:"problem,omitempty"`
}

// Handler serves a Keeper on the admin socket. POST saves a snapshot, GET lists, DELETE deletes named snapshots, and
// POST …/prune removes old ones. Each request may have its own settings for S3.
func (k *Keeper) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+Path, func(w http.ResponseWriter, r *http.Request) {
		list, err := k.List(r.Context())
		if list == nil {
			list = []Info{}
		}
		writeResponse(w, list, err)
	})
	mux.HandleFunc("POST "+Path, func(w http.ResponseWriter, r *http.Request) {
		info, err := k.Save(r.Context(), r.URL.Query().Get("name"))
		writeResponse(w, info, err)
	})
	mux.HandleFunc("DELETE "+Path, func(w http.ResponseWriter, r *http.Request) {
		deleted, err := k.Delete(r.Context(), r.URL.Query()["name"])
		writeResponse(w, removedResponse(deleted, err), nil)
	})
	mux.HandleFunc("POST "+Path+"/prune", func(w http.ResponseWriter, r *http.Request) {
		keep := ConfiguredRetention
		if text := r.URL.Query().Get("retention"); text != "" {
			n, err := strconv.Atoi(text)
			if err != nil || n < 0 {
				http.Error(w, "the number of snapshots to keep is no number", http.StatusBadRequest)
				return
			}
			keep = n
		}
		deleted, err := k.Prune(r.Context(), r.URL.Query().Get("name"), keep)
		writeResponse(w, removedResponse(deleted, err), nil)
	})
	return queryInContext(mux)
}

func removedResponse(deleted []string, err error) Removed {
	out := Removed{Deleted: deleted}
	if err != nil {
		out.Problem = err.Error()
	}
	return out
}

func writeResponse(w http.ResponseWriter, body any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(body) // an error means that the client has ended
}
