// SPDX-License-Identifier: Apache-2.0

// Package helmjob is what the controller of Helm charts and the child process that does its work say to one another: a
// Request goes to the child's standard input, a Result comes from its standard output, both as JSON; its log goes to
// its standard error. Helm itself is linked into the child alone (cmd/coracle-tools), so that its memory is there only
// while a chart is installed: nothing here imports it.
package helmjob

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/intstr"
)

// Operation is what is to be done with a release.
type Operation string

const (
	// Apply makes the release what the request describes: it installs, upgrades, recovers or finds that nothing is to
	// be done.
	Apply Operation = "apply"
	// Uninstall removes the release. One that is not there is a success.
	Uninstall Operation = "uninstall"
)

// FailurePolicy is what happens to a release whose last installation or upgrade failed. It counts for the same chart
// and values only: a request that differs from what failed is always tried.
type FailurePolicy string

const (
	// Abort leaves it as it is, for a person to look at.
	Abort FailurePolicy = "abort"
	// Reinstall removes it and installs it again; what its objects held is lost.
	Reinstall FailurePolicy = "reinstall"
	// Retry does again what failed.
	Retry FailurePolicy = "retry"
)

// DefaultTimeout is how long a request without a timeout may wait for each of its hooks, as with helm itself.
const DefaultTimeout = 5 * time.Minute

// Request is what one child process is asked to do. It holds passwords: it is never logged and never in an argument.
type Request struct {
	Operation Operation `json:"operation"`
	// Socket is the path of the Unix socket at which the API server answers, without TLS, to a user who may do all that
	// charts do.
	Socket    string `json:"socket"`
	Namespace string `json:"namespace"` // of the release
	Release   string `json:"release"`   // its name
	// Driver is where the release is kept: "secret", or "" for that, or "configmap".
	Driver string `json:"driver,omitempty"`
	// Seal is a secret of the cluster. What is written of a release carries a code that is made with it; what does not
	// is believed only as far as the objects that it names bear the release's marks.
	Seal []byte `json:"seal,omitempty"`
	// Timeout is how long each hook, and each wait for a removal, may take. 0: DefaultTimeout.
	Timeout time.Duration `json:"timeout,omitempty"`

	// The rest is for Apply only.

	CreateNamespace bool  `json:"createNamespace,omitempty"`
	Chart           Chart `json:"chart"`
	// Values are YAML documents; what a later one says counts.
	Values []Document `json:"values,omitempty"`
	// Set are single values over those of the documents, by helm's path (a.b[0].c). As with k3s, numbers and the words
	// true, false and null have their types, and every other string is a string.
	Set           map[string]intstr.IntOrString `json:"set,omitempty"`
	FailurePolicy FailurePolicy                 `json:"failurePolicy,omitempty"` // "": Reinstall, as with k3s
	// ServerSide is "true", "false", or "" and "auto": as the release was applied before, and on the server for a new
	// one.
	ServerSide string `json:"serverSide,omitempty"`
	// TakeOwnership lets the release take over objects that exist already and belong to no release or to another one.
	TakeOwnership bool `json:"takeOwnership,omitempty"`
	// Upgrade fetches the chart and upgrades although nothing in the request has changed: a chart without a version may
	// have a newer one.
	Upgrade bool `json:"upgrade,omitempty"`
}

// Document is YAML text; in JSON it is a string.
type Document string

// Chart says where the chart comes from. Content counts before Name.
type Chart struct {
	// Content is an archive (.tgz).
	Content []byte `json:"content,omitempty"`
	// Name is a chart's name in Repo; the URL of an archive (http, https); a reference to a registry (oci://host/path,
	// or host/path:tag@digest behind that); or a file in one of Folders: see LocalFile.
	Name string `json:"name,omitempty"`
	// Repo is a repository's URL; with the scheme oci it is the registry's path before Name.
	Repo string `json:"repo,omitempty"`
	// Version is exact ("1.2.3") or a range ("^1.2", ">=1 <3"). "": the newest that is no pre-release.
	Version string `json:"version,omitempty"`
	// Folders are where charts lie that are named by file or by k3s' https://%{KUBERNETES_API}%/static/charts/FILE; the
	// first that has it counts.
	Folders []string `json:"folders,omitempty"`

	Username string `json:"username,omitempty"`
	Password string `json:"password,omitempty"`
	// PassCredentialsAll sends the credentials to other hosts too, where the repository's index names such.
	PassCredentialsAll bool `json:"passCredentialsAll,omitempty"`
	// CA are certificates (PEM) trusted for the repository or registry besides the machine's own.
	CA                    string `json:"ca,omitempty"`
	InsecureSkipTLSVerify bool   `json:"insecureSkipTLSVerify,omitempty"`
	// PlainHTTP speaks to a registry without TLS.
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
	name = path.Clean("/" + name)[1:] // nothing above the folder
	return name, name != ""
}

// Validate says what is wrong with a request before anything is started.
func (r *Request) Validate() error {
	switch r.Operation {
	case Apply, Uninstall:
	default:
		return fmt.Errorf("%q is no operation", r.Operation)
	}
	if r.Socket == "" || r.Namespace == "" || r.Release == "" {
		return errors.New("a request needs a socket of the API, a namespace and a release's name")
	}
	if len(r.Seal) == 0 {
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
