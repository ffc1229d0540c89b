// SPDX-License-Identifier: Apache-2.0

package helmjob

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// UserLimit is the time that a user's own operation may take in all. The child is killed then.
const UserLimit = 15 * time.Minute

// Shown is a revision of a release as a user saw it.
type Shown struct {
	Revision int    `json:"revision"`
	Sum      string `json:"sum"` // from Record.Sum
}

// Record is those contents of a stored revision that Helm acts on. The names in JSON are Helm's
// (helm.sh/helm/v4/pkg/release/v1).
type Record struct {
	Manifest string `json:"manifest"`
	Hooks    []Hook `json:"hooks"`
}

// Hook is a hook of a release, with Helm's names of the fields.
type Hook struct {
	Name           string   `json:"name"`
	Kind           string   `json:"kind"`
	Manifest       string   `json:"manifest"`
	Events         []string `json:"events"`
	Weight         int      `json:"weight"`
	DeletePolicies []string `json:"delete_policies"` //nolint:tagliatelle // Helm's name
}

// Sum returns a digest of the record.
func (r Record) Sum() string {
	text := []any{r.Manifest}
	for _, h := range r.Hooks {
		text = append(text, h.Name, h.Kind, h.Manifest, strings.Join(h.Events, ","), h.Weight, strings.Join(h.DeletePolicies, ","))
	}
	out, err := json.Marshal(text)
	if err != nil {
		panic(fmt.Sprintf("summing up a release: %v", err)) // strings and numbers can always be encoded
	}
	sum := sha256.Sum256(out)
	return hex.EncodeToString(sum[:])
}

// DigestLabel is a label on the Secret or ConfigMap of a revision that a HelmChart made. It holds the digest of the
// request, a dot and the number of the revision, since helm copies labels to later revisions.
const DigestLabel = "coracle.dev/helm-request"

// MadeByChart says whether a HelmChart made a revision, by the labels of the object that holds it.
func MadeByChart(labels map[string]string, revision int) bool {
	_, number, found := strings.Cut(labels[DigestLabel], ".")
	return found && number == strconv.Itoa(revision)
}

// AtWork says whether another helm may be at work on a release whose newest revision has this status (Helm's word)
// since some time. A helm that died leaves such a status for ever, so it counts for UserLimit only.
func AtWork(status string, since, now time.Time) bool {
	return (strings.HasPrefix(status, "pending-") || status == "uninstalling") && now.Sub(since) < UserLimit
}
