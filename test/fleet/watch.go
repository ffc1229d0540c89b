// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/coracle-k8s/coracle/internal/clustersettings"
)

const (
	// A watch ends by itself after minWatch to twice as long, as client-go's reflectors ask for.
	minWatch = 5 * time.Minute
	// maxEvent bounds one event.
	maxEvent = 16 << 20
)

// watched is what an agent watches, by the path of the API and the field selector.
type watched struct{ path, fields string }

// kubeletWatches are those of the node's own identity besides its pods', and authority's in a namespace where it has
// pods with a token.
func kubeletWatches(node string) []watched {
	return []watched{
		{path: "/api/v1/nodes", fields: "metadata.name=" + node},
		{path: "/api/v1/services", fields: "spec.clusterIP!=None"},
		{path: "/apis/storage.k8s.io/v1/csidrivers"},
		{path: "/apis/node.k8s.io/v1/runtimeclasses"},
		{path: "/apis/certificates.k8s.io/v1/podcertificaterequests", fields: "spec.nodeName=" + node},
	}
}

func authority(namespace string) watched {
	return watched{path: "/api/v1/namespaces/" + namespace + "/configmaps", fields: "metadata.name=kube-root-ca.crt"}
}

// networkWatches are those of the identity of pod network, Service proxy and DNS: internal/netinformers'. The stream of
// settings comes on top.
func networkWatches() []watched {
	return []watched{
		{path: "/api/v1/nodes"},
		{path: "/api/v1/services"},
		{path: "/apis/discovery.k8s.io/v1/endpointslices"},
		{path: "/api/v1/namespaces"},
		{path: "/apis/networking.k8s.io/v1/servicecidrs"},
		{path: "/apis/networking.k8s.io/v1/networkpolicies"},
	}
}

// watchAll begins all that the node watches, one after the other, and returns when each has had what there is. They go
// on until ctx is done.
func (n *node) watchAll(ctx context.Context) {
	n.f.running.Go(func() { n.followPods(ctx) })
	for _, w := range kubeletWatches(n.name) {
		n.watch(ctx, n.kubelet, w)
	}
	for _, w := range networkWatches() {
		n.watch(ctx, n.network, w)
	}
	n.settings(ctx)
	n.f.running.Go(func() { n.keepServers(ctx) })
}

// watch begins a watch, and returns when it has had what there is.
func (n *node) watch(ctx context.Context, client *http.Client, what watched) {
	s := &stream{client: client, url: "https://" + n.server + what.path, selectors: url.Values{}}
	if what.fields != "" {
		s.selectors.Set("fieldSelector", what.fields)
	}
	began := make(chan struct{})
	var once sync.Once
	s.complete = func() { once.Do(func() { close(began) }) }
	n.f.running.Go(func() {
		defer s.complete()
		for ctx.Err() == nil {
			n.again(ctx, "watch "+what.path, s.read)
		}
	})
	<-began
}

// settings begins the stream of settings, and returns when it has had what there is.
func (n *node) settings(ctx context.Context) {
	began := make(chan struct{})
	complete := sync.OnceFunc(func() { close(began) })
	at := "https://" + n.server + clustersettings.Path + "?" + url.Values{clustersettings.Parameter: clustersettings.Names()}.Encode()
	n.f.running.Go(func() {
		defer complete()
		for ctx.Err() == nil {
			n.again(ctx, "the stream of settings", func(ctx context.Context) error { return readSettings(ctx, n.network, at, complete) })
		}
	})
	<-began
}

// readSettings reads what stands in settings, and throws it away, until the server ends the stream.
func readSettings(ctx context.Context, client *http.Client, at string, complete func()) error {
	answer, err := get(ctx, client, at, "application/json")
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	for lines, words := bufio.NewReader(answer.Body), 1; ; words++ {
		_, err := lines.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			words--
		case errors.Is(err, io.EOF), err != nil && ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		case words == len(clustersettings.Names()):
			complete()
		}
	}
}

// stream is one watch, which is asked for as client-go's reflectors ask: what there is comes first, and after an end it
// goes on where it was. Its events are read and thrown away.
type stream struct {
	client    *http.Client
	url       string
	selectors url.Values
	complete  func() // what there was has come

	revision string
	last     []byte // the newest event
}

// In an event of metav1.WatchEvent's form its type comes first: a tag, a length and the text.
var bookmark, failure = []byte("\x0a\x08BOOKMARK"), []byte("\x0a\x05ERROR")

var errRefused = errors.New("the server ends the watch with an error")

// read reads until the server ends the watch.
func (s *stream) read(ctx context.Context) error {
	q := url.Values{"watch": {"true"}, "allowWatchBookmarks": {"true"}, "timeoutSeconds": {strconv.Itoa(int((minWatch + rand.N(minWatch)).Seconds()))}}
	if s.revision == "" {
		q.Set("sendInitialEvents", "true")
		q.Set("resourceVersionMatch", string(metav1.ResourceVersionMatchNotOlderThan))
	} else {
		q.Set("resourceVersion", s.revision)
	}
	maps.Copy(q, s.selectors)
	answer, err := get(ctx, s.client, s.url+"?"+q.Encode(), runtime.ContentTypeProtobuf)
	if err != nil {
		return s.reopen(err)
	}
	defer answer.Body.Close()
	for s.last = s.last[:0]; ; {
		err := s.next(answer.Body)
		switch {
		case err == nil && bytes.HasPrefix(s.last, bookmark):
			s.complete()
		case err == nil && bytes.HasPrefix(s.last, failure):
			return s.reopen(fmt.Errorf("%w: %q", errRefused, s.last))
		case err != nil && ctx.Err() != nil:
			return nil
		case err != nil:
			return s.ended(err)
		}
	}
}

// next reads one event: its length in four bytes, and then the event.
func (s *stream) next(r io.Reader) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	length := int(binary.BigEndian.Uint32(head[:]))
	if length > maxEvent {
		return fmt.Errorf("an event of %d bytes", length)
	}
	s.last = slices.Grow(s.last[:0], length)[:length]
	_, err := io.ReadFull(r, s.last)
	return err
}

// ended takes the revision of the newest event, from which the next watch goes on.
func (s *stream) ended(why error) error {
	if !errors.Is(why, io.EOF) {
		return s.reopen(why)
	}
	if len(s.last) == 0 {
		return nil // nothing has come since the last time
	}
	var err error
	s.revision, err = revisionOf(s.last)
	return err
}

// reopen has the next watch begin with what there is. That is no error where this one began at a revision: the server
// may have forgotten it, and then has forgotten that of every watch in which nothing has happened for as long.
func (s *stream) reopen(why error) error {
	if s.revision != "" {
		s.revision = ""
		return nil
	}
	return why
}

// revisionOf reads the resourceVersion of an event's object, of whichever kind: all have their metadata in the same
// field.
func revisionOf(event []byte) (string, error) {
	var e metav1.WatchEvent
	if err := e.Unmarshal(event); err != nil {
		return "", fmt.Errorf("an event: %w", err)
	}
	raw, ok := bytes.CutPrefix(e.Object.Raw, []byte("k8s\x00"))
	if !ok {
		return "", errors.New("an event whose object is not protobuf")
	}
	var u runtime.Unknown
	if err := u.Unmarshal(raw); err != nil {
		return "", fmt.Errorf("an event's object: %w", err)
	}
	var m metav1.PartialObjectMetadata
	if err := m.Unmarshal(u.Raw); err != nil {
		return "", fmt.Errorf("an event's object: %w", err)
	}
	return m.ResourceVersion, nil
}

// get asks, and fails unless the answer is 200.
func get(ctx context.Context, client *http.Client, at, accept string) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, at, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", accept)
	answer, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusOK {
		defer answer.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 300)) // what can be read of it
		return nil, fmt.Errorf("GET %s: %s: %q", at, answer.Status, text)
	}
	return answer, nil
}
