// SPDX-License-Identifier: Apache-2.0

// Package helmjob is the protocol between a process that has work for Helm and the child process that does the work.
// The controller of Helm charts has such work, and so has the console, with its user's own rights. A Request is sent to
// the child's standard input, and a Result is read from its standard output, both as JSON. The child's log is its
// standard error. Helm runs in the child alone (cmd/coracle/tools/helmchild). Nothing in this package imports it.
//
// Its goroutines: for each child the API that it is served, and one that reads its output.
package helmjob

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/intstr"
)

// Operation is the kind of change that a child process makes to a release.
type Operation string

const (
	// Apply makes the release match the request: it installs, upgrades or recovers it, or finds that nothing has to be
	// done.
	Apply Operation = "apply"
	// Uninstall removes the release. It succeeds if there is none.
	Uninstall Operation = "uninstall"

	// RollBack makes a revision that is as an earlier one, as helm rollback does. It is a user's own operation: the
	// socket has the user's rights, and records need no seal.
	RollBack Operation = "rollback"
	// Remove removes the release as helm uninstall does. It is a user's own operation.
	Remove Operation = "remove"
)

// OfUser says whether the operation is a user's own, with the user's rights.
func (o Operation) OfUser() bool { return o == RollBack || o == Remove }

// FailurePolicy is what happens to a release whose last installation or upgrade failed. It applies only to the same
// chart and values: a request that differs from the failed one is always tried.
type FailurePolicy string

const (
	// Abort leaves the release unchanged, for an operator to examine.
	Abort FailurePolicy = "abort"
	// Reinstall removes the release and installs it again. Data in its objects is lost.
	Reinstall FailurePolicy = "reinstall"
	// Retry repeats the failed operation.
	Retry FailurePolicy = "retry"
)

// DefaultTimeout is the time that each hook of a request without a timeout may take, as in helm itself.
const DefaultTimeout = 5 * time.Minute

// Request is the request to one child process. It may contain passwords: it is never logged and never in an argument.
type Request struct {
	Operation Operation `json:"operation"`
	// Socket is the path of a Unix socket at which the API server answers without TLS. The socket's user has all
	// permissions that charts need.
	Socket    string `json:"socket"`
	Namespace string `json:"namespace"` // of the release
	Release   string `json:"release"`   // the release's name
	// Driver is the kind of objects in which the release is stored: "secret", or "" for the same, or "configmap".
	Driver string `json:"driver,omitempty"`
	// Seal is a secret of the cluster. Written records of a release carry an authentication code made with it. A record
	// without one is trusted only for objects that carry the release's own labels and annotations.
	Seal []byte `json:"seal,omitempty"`
	// Timeout is the time that each hook, and each wait for a removal, may take. 0 is for DefaultTimeout.
	Timeout time.Duration `json:"timeout,omitempty"`

	// Shown are the revisions that a user saw before choosing RollBack or Remove: the newest, and for RollBack the one
	// to go back to. Nothing is done if one of them has changed since.
	Shown []Shown `json:"shown,omitempty"`

	// The remaining fields are for Apply only.

	CreateNamespace bool  `json:"createNamespace,omitempty"`
	Chart           Chart `json:"chart"`
	// Values are YAML documents. A later document overrides earlier ones.
	Values []Document `json:"values,omitempty"`
	// Set are single values by helm's path (a.b[0].c). They override the documents. As with k3s, numbers and the words
	// true, false and null have their types, and every other string is a string.
	Set           map[string]intstr.IntOrString `json:"set,omitempty"`
	FailurePolicy FailurePolicy                 `json:"failurePolicy,omitempty"` // "" is for Reinstall, as with k3s
	// ServerSide selects server-side apply: "true", "false", or "" and "auto". The last two use the release's earlier
	// method, and server-side apply for a new release.
	ServerSide string `json:"serverSide,omitempty"`
	// TakeOwnership lets the release take over existing objects that belong to no release or to another one.
	TakeOwnership bool `json:"takeOwnership,omitempty"`
	// Upgrade fetches the chart and upgrades the release even if the request has not changed, since a chart without a
	// version may have a newer one.
	Upgrade bool `json:"upgrade,omitempty"`
}

// Document is YAML text. In JSON it is a string.
type Document string

// Chart is the source of the chart. Content has precedence over Name.
type Chart struct {
	// Content is the content of an archive (.tgz).
	Content []byte `json:"content,omitempty"`
	// Name is a chart's name in Repo; the URL of an archive (http, https); a reference to a registry (oci://host/path,
	// optionally followed by :tag@digest); or a file in one of Folders: see LocalFile.
	Name string `json:"name,omitempty"`
	// Repo is a repository's URL. With the scheme oci it is the registry's path before Name.
	Repo string `json:"repo,omitempty"`
	// Version is exact ("1.2.3") or a range ("^1.2", ">=1 <3"). "" is for the newest version that is not a pre-release.
	Version string `json:"version,omitempty"`
	// Folders are the folders with charts that are named by file or by k3s'
	// https://%{KUBERNETES_API}%/static/charts/FILE. The first folder with the file is used.
	Folders []string `json:"folders,omitempty"`

	Username string `json:"username,omitempty"`
	Password string `json:"password,omitempty"`
	// PassCredentialsAll sends the credentials to other hosts, too, that the repository's index names.
	PassCredentialsAll bool `json:"passCredentialsAll,omitempty"`
	// CA are certificates (PEM) that are trusted for the repository or registry, besides the machine's own.
	CA                    string `json:"ca,omitempty"`
	InsecureSkipTLSVerify bool   `json:"insecureSkipTLSVerify,omitempty"`
	// PlainHTTP uses HTTP without TLS for a registry.
	PlainHTTP bool `json:"plainHTTP,omitempty"`
	// DockerConfig is the value of a Secret of type kubernetes.io/dockerconfigjson, for registries.
	DockerConfig []byte `json:"dockerConfig,omitempty"`
}

const k3sStatic = "https://%{KUBERNETES_API}%/static/charts/"

// LocalFile returns the path, relative to a folder of charts, of a chart that is named as a file: k3s'
// https://%{KUBERNETES_API}%/static/charts/FILE.tgz, or FILE.tgz without a repository.
func (c *Chart) LocalFile() (string, bool) {
	name, static := strings.CutPrefix(c.Name, k3sStatic)
	if !static && (c.Repo != "" || strings.Contains(c.Name, "://") || !strings.HasSuffix(c.Name, ".tgz")) {
		return "", false
	}
	name = path.Clean("/" + name)[1:] // no path above the folder
	return name, name != ""
}

// Validate checks a request before a child is started.
func (r *Request) Validate() error {
	switch r.Operation {
	case Apply, Uninstall:
	case RollBack, Remove:
		if want := map[Operation]int{RollBack: 2, Remove: 1}[r.Operation]; len(r.Shown) != want {
			return fmt.Errorf("%s needs %d revisions that were shown, not %d", r.Operation, want, len(r.Shown))
		}
	default:
		return fmt.Errorf("%q is no operation", r.Operation)
	}
	if r.Socket == "" || r.Namespace == "" || r.Release == "" {
		return errors.New("a request needs a socket of the API, a namespace and a release's name")
	}
	if len(r.Seal) == 0 && !r.Operation.OfUser() {
		return errors.New("a request needs the cluster's seal for releases")
	}
	if r.Timeout < 0 {
		return fmt.Errorf("the timeout is negative: %s", r.Timeout)
	}
	switch r.FailurePolicy {
	case "", Abort, Reinstall, Retry:
	default:
		return fmt.Errorf("failurePolicy is abort, reinstall or retry, not %q", r.FailurePolicy)
	}
	switch r.ServerSide {
	case "", "auto", "true", "false":
	default:
		return fmt.Errorf("serverSide is auto, true or false, not %q", r.ServerSide)
	}
	c := &r.Chart
	if r.Operation == Apply && len(c.Content) == 0 && c.Name == "" {
		return errors.New("the request names no chart: give chart, or chartContent")
	}
	return nil
}
