// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
)

// extended is the version of an API that extend serves.
const extended = "extended.coracle.test/v1"

// extend answers over HTTPS on port 8443, with the given certificate and key, what API servers ask of their extensions.
// /admit is an admission webhook: it refuses ConfigMaps with the key "refuse", and says in the key "admitted" of others
// on which host it runs. The API extended.coracle.test/v1 has a greeting of each name, which says that too.
func extend(args []string) error {
	if len(args) != 2 {
		return errors.New("extend CERTIFICATE KEY")
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("POST /admit", func(w http.ResponseWriter, r *http.Request) { admit(w, r, host) })
	mux.HandleFunc("GET /apis/"+extended, func(w http.ResponseWriter, _ *http.Request) {
		respond(w, map[string]any{"apiVersion": "v1", "kind": "APIResourceList", "groupVersion": extended, "resources": []map[string]any{
			{"name": "greetings", "singularName": "greeting", "namespaced": true, "kind": "Greeting", "verbs": []string{"get"}},
		}})
	})
	mux.HandleFunc("GET /apis/"+extended+"/namespaces/{namespace}/greetings/{name}", func(w http.ResponseWriter, r *http.Request) {
		respond(w, map[string]any{
			"apiVersion": extended, "kind": "Greeting", "from": host,
			"metadata": map[string]string{"name": r.PathValue("name"), "namespace": r.PathValue("namespace")},
		})
	})
	return http.ListenAndServeTLS(":8443", args[0], args[1], mux)
}

// admit judges the object of an AdmissionReview.
func admit(w http.ResponseWriter, r *http.Request, host string) {
	var review struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Request    struct {
			UID    string `json:"uid"`
			Object struct {
				Data map[string]string `json:"data"`
			} `json:"object"`
		} `json:"request"`
	}
	if err := json.NewDecoder(r.Body).Decode(&review); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	verdict := map[string]any{
		"uid": review.Request.UID, "allowed": true, "patchType": "JSONPatch",
		"patch": fmt.Appendf(nil, `[{"op": "add", "path": "/data/admitted", "value": %q}]`, host), // bytes are base64 in JSON
	}
	if _, refuse := review.Request.Object.Data["refuse"]; refuse {
		verdict = map[string]any{"uid": review.Request.UID, "allowed": false, "status": map[string]string{"message": host + " refuses it"}}
	}
	respond(w, map[string]any{"apiVersion": review.APIVersion, "kind": review.Kind, "response": verdict})
}

func respond(w http.ResponseWriter, object any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(object); err != nil {
		fmt.Fprintln(os.Stderr, "testbox:", err)
	}
}
