// SPDX-License-Identifier: Apache-2.0

package console

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/status"
)

// resolver parses paths of the API as the API server does.
var resolver = request.RequestInfoFactory{APIPrefixes: sets.NewString("api", "apis"), GrouplessAPIPrefixes: sets.NewString("api")}

// otherPaths are the paths of the API that the pages read besides those of resources.
var otherPaths = []string{"/api", "/apis", "/version", "/openapi/v3", "/readyz", "/livez", status.ClusterPath, clusterconfig.NamespacesPath,
	clusterconfig.MetricsHistoryPath}

// apiPath checks a path of the API. It refuses the `proxy` of a pod, Service or node: any program may answer there, and
// the browser would treat its page as one of this console.
func apiPath(method, path string) error {
	if !strings.HasPrefix(path, "/") || strings.Contains(path, "//") || strings.ContainsAny(path, "\\%?#") ||
		slices.ContainsFunc(strings.Split(path, "/"), func(s string) bool { return s == "." || s == ".." }) {
		return fmt.Errorf("%q is not a path of the API", path)
	}
	if slices.Contains(otherPaths, path) || strings.HasPrefix(path, "/openapi/v3/") {
		if method != http.MethodGet {
			return fmt.Errorf("%s can only be read", path)
		}
		return nil
	}
	if !strings.HasPrefix(path, "/api/") && !strings.HasPrefix(path, "/apis/") {
		return fmt.Errorf("%q is not a path that the console uses", path)
	}
	info, err := resolver.NewRequestInfo(&http.Request{Method: method, URL: &url.URL{Path: path}})
	if err != nil {
		return fmt.Errorf("%q is not a path of the API: %w", path, err)
	}
	if info.Verb == "proxy" || info.Subresource == "proxy" || info.Resource == "proxy" {
		return errors.New("the console does not go through the API's proxy: use kubectl port-forward")
	}
	return nil
}

// maxResponse limits a response of the API that the console parses, in bytes: 500 objects are seldom larger.
const maxResponse = 32 << 20

// readOnlyPosts are requests that create nothing. They ask what the user may do.
var readOnlyPosts = []string{
	"/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
	"/apis/authentication.k8s.io/v1/selfsubjectreviews",
}

// request makes a request to the API with the user's credentials. The caller closes the response's body.
func (u *user) request(ctx context.Context, method, path string, query url.Values, header http.Header,
	body io.Reader) (*http.Response, error) {
	if err := apiPath(method, path); err != nil {
		return nil, apierrors.NewForbidden(schema.GroupResource{}, path, err)
	}
	transport, err := rest.TransportFor(u.config)
	if err != nil {
		return nil, fmt.Errorf("using the credentials: %w", err)
	}
	client := http.Client{ // the API redirects no client
		Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	base, _, err := rest.DefaultServerUrlFor(u.config)
	if err != nil {
		return nil, fmt.Errorf("the address of the API: %w", err)
	}
	target := base.JoinPath(path)
	target.RawQuery = query.Encode()
	r, err := http.NewRequestWithContext(ctx, method, target.String(), body)
	if err != nil {
		return nil, fmt.Errorf("making a request: %w", err)
	}
	r.Header = header
	if u.config.UserAgent != "" {
		r.Header.Set("User-Agent", u.config.UserAgent)
	}
	response, err := client.Do(r) //nolint:gosec // the address is from the kubeconfig, and the path was checked
	if err != nil {
		return nil, connectionError(err)
	}
	if u.identified != nil && response.StatusCode != http.StatusUnauthorized {
		u.identified()
	}
	return response, nil
}

// errNoAnswer says that the API could not be reached.
var errNoAnswer = errors.New("the cluster does not answer")

// connectionError returns the error for a request that got no response. It leaves out the request's address, which
// pages need not show.
func connectionError(err error) error {
	var request *url.Error
	if errors.As(err, &request) {
		err = request.Err
	}
	var network net.Error
	if errors.As(err, &network) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %w", errNoAnswer, err)
	}
	return fmt.Errorf("asking the API: %w", err)
}

// get reads JSON of the API into v.
func (u *user) get(ctx context.Context, path string, query url.Values, v any) error {
	return u.getAtMost(ctx, path, query, v, maxResponse)
}

// getAtMost is get for a response of up to most bytes.
func (u *user) getAtMost(ctx context.Context, path string, query url.Values, v any, most int64) error {
	response, err := u.request(ctx, http.MethodGet, path, query, http.Header{"Accept": {"application/json"}}, nil)
	if err != nil {
		return err
	}
	return read(response, v, most)
}

// write writes JSON, or a patch of the given type, and reads the response into v.
func (u *user) write(ctx context.Context, method, path string, query url.Values, contentType string, body []byte, v any) error {
	header := http.Header{"Accept": {"application/json"}, "Content-Type": {contentType}}
	response, err := u.request(ctx, method, path, query, header, bytes.NewReader(body))
	if err != nil {
		return err
	}
	return read(response, v, maxResponse)
}

// tooLong returns the error for a response of the API that is longer than the console reads. Trying again would not
// help.
func tooLong(most int64) error {
	return apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("the API's answer is longer than %d MB", most>>20))
}

// read parses a response of the API: JSON of up to most bytes into v, or the error in it.
func read(response *http.Response, v any, most int64) error {
	return readBy(response, most, func(d *json.Decoder) error { return d.Decode(v) })
}

// readBy does the same as read, with a function that decodes the JSON.
func readBy(response *http.Response, most int64, decode func(*json.Decoder) error) error {
	defer response.Body.Close()
	if response.StatusCode < 200 || response.StatusCode > 299 {
		return statusError(response)
	}
	limited := &io.LimitedReader{R: response.Body, N: most}
	if err := decode(json.NewDecoder(limited)); err != nil {
		if limited.N <= 0 {
			return tooLong(most)
		}
		return fmt.Errorf("reading the API's answer: %w", err)
	}
	return nil
}

func statusError(response *http.Response) error {
	text, _ := io.ReadAll(io.LimitReader(response.Body, 64<<10)) // as much as could be read is shown
	var status metav1.Status
	if json.Unmarshal(text, &status) == nil && status.Kind == "Status" {
		if status.Code == 0 {
			status.Code = int32(response.StatusCode) //nolint:gosec // three digits
		}
		return &apierrors.StatusError{ErrStatus: status}
	}
	message := strings.TrimSpace(string(text))
	message = cmp.Or(message, response.Status)
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Message: message, Reason: metav1.StatusReason(http.StatusText(response.StatusCode)),
		Code: int32(response.StatusCode), //nolint:gosec // three digits
	}}
}

// requestHeaders and responseHeaders are the headers that are forwarded. All others are removed.
var (
	requestHeaders  = []string{"Accept", "Content-Type"}
	responseHeaders = []string{"Content-Type", "Warning", "Retry-After"}
)

// passThrough forwards a request to the API with the user's credentials.
func (h *Handler) passThrough(w http.ResponseWriter, r *http.Request, u *user) {
	path := strings.TrimPrefix(r.URL.Path, "/k8s") // decoded, so that the checked path is the one that the API gets
	if h.o.ReadOnly && r.Method != http.MethodGet && !(r.Method == http.MethodPost && slices.Contains(readOnlyPosts, path)) {
		answerError(w, http.StatusForbidden, readOnly)
		return
	}
	header := http.Header{}
	for _, name := range requestHeaders {
		if v := r.Header.Get(name); v != "" {
			header.Set(name, v)
		}
	}
	var body io.Reader
	switch r.Method {
	case http.MethodGet:
	case http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete:
		// Without a content type the API reads a body as JSON, whatever the client sent.
		if header.Get("Content-Type") == "" && r.ContentLength != 0 {
			answerError(w, http.StatusUnsupportedMediaType, "a request with a body says its type")
			return
		}
		body = r.Body
	default:
		answerError(w, http.StatusMethodNotAllowed, "the console does not use "+r.Method)
		return
	}
	response, err := u.request(r.Context(), r.Method, path, r.URL.Query(), header, body)
	if err == nil && response.StatusCode >= http.StatusBadRequest && response.StatusCode <= 599 {
		err = statusError(response)
		response.Body.Close()
	}
	if err != nil {
		refuseError(w, err)
		return
	}
	defer response.Body.Close()
	for _, name := range responseHeaders {
		for _, v := range response.Header.Values(name) {
			w.Header().Add(name, v)
		}
	}
	code := response.StatusCode
	if code < http.StatusOK || code > 599 || code >= 300 && code < 400 {
		code = http.StatusBadGateway
	}
	w.WriteHeader(code)
	_, _ = io.Copy(w, response.Body) // the browser detects a response that ended early
}

// refuseError answers with a requestError, or with an error of the API in words, and with the API's own text for it. It
// answers with 502 when the API gave none.
func refuseError(w http.ResponseWriter, err error) {
	if refused, ok := errors.AsType[*requestError](err); ok {
		respondWith(w, refused.code, refused.response)
		return
	}
	code, reason, said := explainError(err)
	code = cmp.Or(code, http.StatusBadGateway)
	respondWith(w, code, map[string]any{"message": joinMessages(err), "said": said, "reason": reason, "code": code})
}

// noLeader is the API server's error when the store has no quorum. noLeaderText explains it to users.
const (
	noLeader     = "etcdserver: no leader"
	noLeaderText = "The cluster has no leader at this moment, so nothing can be read or changed. " +
		"It goes on by itself when a majority of its servers answers. The overview says which do not."
)

// reasonNoAnswer and reasonNoLeader tell pages that the cluster, and not one of its parts, does not answer.
const (
	reasonNoAnswer = "NoAnswer"
	reasonNoLeader = "NoLeader"
)

// explainError returns an error's HTTP status (0 when the API gave none), reason and message.
func explainError(err error) (code int, reason, message string) {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		s := status.Status()
		if s.Code < http.StatusBadRequest || s.Code > 599 { // not a valid status of an API
			return http.StatusBadGateway, string(s.Reason), s.Message
		}
		if strings.Contains(s.Message, noLeader) {
			return int(s.Code), reasonNoLeader, noLeaderText
		}
		return int(s.Code), string(s.Reason), s.Message
	}
	if errors.Is(err, errNoAnswer) {
		return 0, reasonNoAnswer, err.Error()
	}
	return 0, "", err.Error()
}

// sessionResponse has the data of the session and its user that the pages show.
type sessionResponse struct {
	Mode      string   `json:"mode"`
	User      string   `json:"user"`
	Groups    []string `json:"groups"`
	Context   string   `json:"context"`
	Contexts  int      `json:"contexts"` // how many there are
	Namespace string   `json:"namespace"`
	Server    string   `json:"server"`
	Version   string   `json:"version"`
	ReadOnly  bool     `json:"readOnly"`
}

// whoAmI asks the API for the user's name and groups.
func (u *user) whoAmI(ctx context.Context) (*authenticationv1.SelfSubjectReview, error) {
	review := &authenticationv1.SelfSubjectReview{}
	return review, u.write(ctx, http.MethodPost, "/apis/authentication.k8s.io/v1/selfsubjectreviews", nil, "application/json",
		[]byte(`{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}`), review)
}

// session answers with the user's name and groups, as the API knows them.
func (h *Handler) session(r *http.Request, u *user) (any, error) {
	if h.o.Mode == ModeServer && tokenEnded(u.config.BearerToken, time.Now()) { // the API takes it for some seconds more
		return nil, newRequestError(http.StatusUnauthorized, "%s", whyRefused(u.config.BearerToken, time.Now()))
	}
	review, err := u.whoAmI(r.Context())
	switch {
	case apierrors.IsUnauthorized(err) && h.o.Mode == ModeServer:
		return nil, newRequestError(http.StatusUnauthorized, "%s", whyRefused(u.config.BearerToken, time.Now()))
	case apierrors.IsUnauthorized(err):
		return nil, newRequestError(http.StatusUnauthorized, "The cluster does not accept the kubeconfig's credentials any more: they have "+
			"expired, or are another cluster's. Get new ones, and press Enter where coracle console runs for a new link.")
	case err != nil:
		return nil, err
	}
	var v struct{ GitVersion string }
	if err := u.get(r.Context(), "/version", nil, &v); err != nil {
		return nil, err
	}
	return sessionResponse{
		Mode: h.o.Mode, User: review.Status.UserInfo.Username, Groups: review.Status.UserInfo.Groups, Context: h.o.Context,
		Contexts: h.o.Contexts, Namespace: h.o.Namespace, Server: u.config.Host, Version: v.GitVersion, ReadOnly: h.o.ReadOnly,
	}, nil
}
