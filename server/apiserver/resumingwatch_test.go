// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	encryption "k8s.io/apiserver/pkg/server/options/encryptionconfig/controller"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// resumedKinds are kinds whose objects change while their watches end and resume: plain ones, those that are encrypted
// with a key that changes meanwhile, those that have a watch cache, and custom ones.
var resumedKinds = []struct {
	resource schema.GroupVersionResource
	path     string
	object   string
}{
	{schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}, "/api/v1", `{"apiVersion": "v1", "kind": "ConfigMap"}`},
	{schema.GroupVersionResource{Version: "v1", Resource: "secrets"}, "/api/v1", `{"apiVersion": "v1", "kind": "Secret"}`},
	{schema.GroupVersionResource{Version: "v1", Resource: "services"}, "/api/v1", `{"apiVersion": "v1", "kind": "Service", "spec": {"clusterIP": "None", "ports": [{"port": 80}]}}`},
	{boats, "/apis/example.com/v1", `{"apiVersion": "example.com/v1", "kind": "Boat", "spec": {}}`},
}

// overWebSocket stands for JSON as well.
const overWebSocket = "a message for each event"

// formats are those in which watches are asked for.
var formats = []string{"application/json", overWebSocket, "application/json;as=Table;v=v1;g=meta.k8s.io", "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"}

// line is an event in any of them.
type line struct {
	Type   watch.EventType
	Object struct {
		Message  string
		Metadata lineMeta
		Rows     []struct{ Object struct{ Metadata lineMeta } }
	}
}

type lineMeta struct{ Namespace, Name, ResourceVersion string }

// follow is one watch over HTTP.
func follow(ctx context.Context, c *http.Client, where, format string, hear func(watch.EventType, string, uint64, error)) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, where, nil)
	if err != nil {
		return err
	}
	if format == overWebSocket {
		maps.Copy(req.Header, http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="}, "Origin": {"https://localhost"}})
	} else {
		req.Header.Set("Accept", format)
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusTooManyRequests {
		return nil
	}
	body := io.Reader(resp.Body)
	switch {
	case format == overWebSocket && resp.StatusCode == http.StatusSwitchingProtocols:
		defer context.AfterFunc(ctx, func() { resp.Body.Close() })() // which is the connection
		body = &messages{of: bufio.NewReader(body)}
	case format == overWebSocket || resp.StatusCode != http.StatusOK:
		return fmt.Errorf("%s", resp.Status)
	}
	for lines := json.NewDecoder(body); ; {
		var l line
		if err := lines.Decode(&l); err != nil {
			return nil
		}
		m := l.Object.Metadata
		if len(l.Object.Rows) > 0 {
			m = l.Object.Rows[0].Object.Metadata
		}
		if l.Type == watch.Error {
			hear(l.Type, "", 0, fmt.Errorf("%s", l.Object.Message))
			return nil
		}
		version, err := strconv.ParseUint(m.ResourceVersion, 10, 64)
		hear(l.Type, fmt.Sprintf("%s %s/%s %d", l.Type, m.Namespace, m.Name, version), version, err)
	}
}

// messages is what a server says over WebSocket (RFC 6455, 5.2), until it closes.
type messages struct {
	of   *bufio.Reader
	left uint64 // of the frame
}

// Read implements io.Reader.
func (m *messages) Read(p []byte) (int, error) {
	for m.left == 0 {
		head := make([]byte, 2)
		if _, err := io.ReadFull(m.of, head); err != nil {
			return 0, err
		}
		if head[0]&0xf == 8 { // close
			return 0, io.EOF
		}
		longer := map[byte]int{126: 2, 127: 8}[head[1]]
		if longer == 0 {
			m.left = uint64(head[1])
			continue
		}
		length := make([]byte, 8)
		if _, err := io.ReadFull(m.of, length[8-longer:]); err != nil {
			return 0, err
		}
		m.left = binary.BigEndian.Uint64(length)
	}
	n, err := m.of.Read(p[:min(uint64(len(p)), m.left)])
	m.left -= uint64(n)
	return n, err
}

// resuming is a client that watches on where its last watch ended.
type resuming struct {
	what  string
	last  uint64
	moved atomic.Int32 // how often the server ended its watch

	mu     sync.Mutex
	events []string
	wrong  []string
}

func (c *resuming) note(kind watch.EventType, text string, version uint64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err != nil:
		c.wrong = append(c.wrong, err.Error())
		return
	case version < c.last || version == c.last && kind != watch.Bookmark:
		c.wrong = append(c.wrong, fmt.Sprintf("%s, after %d", text, c.last))
	}
	c.last = version
	if kind != watch.Bookmark {
		c.events = append(c.events, text)
	}
}

func (c *resuming) differs(want *resuming) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	want.mu.Lock()
	defer want.mu.Unlock()
	for i := range c.events {
		if i >= len(want.events) || c.events[i] != want.events[i] {
			return fmt.Errorf("%s: it has heard\n%s\nand should have heard\n%s", c.what, strings.Join(c.events[max(0, i-3):], "\n"), strings.Join(want.events[min(max(0, i-3), len(want.events)):], "\n"))
		}
	}
	if len(c.events) < len(want.events) || len(c.wrong)+len(want.wrong) > 0 {
		return fmt.Errorf("%s: it has heard %d events of %d; wrong are %q", c.what, len(c.events), len(want.events), append(c.wrong, want.wrong...))
	}
	return nil
}

// TestResumedWatchesMissNothing: clients whose watches end after a second or two and resume where they were, over HTTP
// in every format, receive every event once and in order.
func TestResumedWatchesMissNothing(t *testing.T) {
	f := newFixtureOf(t, func(t testing.TB, f *fixture) servers {
		return servers{openStore(t, raftstore.Options{Dir: filepath.Join(f.dir, "store"), NodeID: "one", Logger: f.log, ProgressInterval: 10 * time.Millisecond})}
	})
	o := f.options(t)
	o.EncryptionConfigFile = filepath.Join(f.dir, "encryption.yaml")
	o.APIServerArgs = append(o.APIServerArgs, "disable-admission-plugins=ServiceAccount")
	key := func(letter string) string {
		return base64.StdEncoding.EncodeToString(bytes.Repeat([]byte(letter), 32))
	}
	testenv.NoError(t, os.WriteFile(o.EncryptionConfigFile, fmt.Appendf(nil, encryptionConfig, key("k")), 0o600))
	poll := encryption.EncryptionConfigFileChangePollDuration
	encryption.EncryptionConfigFileChangePollDuration = 50 * time.Millisecond
	t.Cleanup(func() { encryption.EncryptionConfigFileChangePollDuration = poll })
	s := f.start(t, o)
	d := dynamicClient(t, s)
	testenv.Must(d.Resource(definitions).Create(t.Context(), object(t, boatDefinition), metav1.CreateOptions{}))(t)
	ns := namespace(t, client(t, s.admin()))
	transport := func(protocols ...string) http.RoundTripper {
		config := s.admin()
		config.NextProtos = protocols
		return testenv.Must(rest.TransportFor(config))(t)
	}
	rt, upgrading := transport(), transport("http/1.1")
	seed := testenv.Seed(t)
	for i, kind := range resumedKinds {
		t.Run(kind.resource.Resource, func(t *testing.T) {
			t.Parallel()
			a := &resumedKind{
				in: d.Resource(kind.resource).Namespace(ns), like: object(t, kind.object), http: &http.Client{Transport: rt}, upgrading: &http.Client{Transport: upgrading},
				url: fmt.Sprintf("%s%s/namespaces/%s/%s", s.url, kind.path, ns, kind.resource.Resource),
			}
			if kind.resource.Resource == "secrets" {
				a.midway = func() {
					two := strings.Replace(encryptionConfig, "{keys: [", fmt.Sprintf("{keys: [{name: two, secret: %s}, ", key("l")), 1)
					next := o.EncryptionConfigFile + ".next"
					testenv.Check(t, errors.Join(os.WriteFile(next, fmt.Appendf(nil, two, key("k")), 0o600), os.Rename(next, o.EncryptionConfigFile)))
				}
				tries := 0
				a.settled = func() {
					eventually(t, "the new key is used", func() error {
						tries++
						change := fmt.Appendf(nil, `{"metadata":{"annotations":{"try":"%d"}}}`, tries)
						if _, err := a.in.Patch(t.Context(), "first", types.MergePatchType, change, metav1.PatchOptions{}); err != nil {
							return err
						}
						return encryptedWith(t, f, "/registry/secrets/"+ns+"/first", "two")
					})
				}
			}
			a.run(t, seed+uint64(i))
			if kind.resource.Resource == "secrets" {
				testenv.Check(t, encryptedWith(t, f, "/registry/secrets/"+ns+"/last", "two"), "the last Secret")
			}
		})
	}
}

// encryptedWith returns an error unless what the store has at a key is encrypted with the named one.
func encryptedWith(t *testing.T, f *fixture, at, name string) error {
	t.Helper()
	got, err := f.store.Client().Client.Get(t.Context(), at)
	if err == nil && (len(got.Kvs) != 1 || !bytes.HasPrefix(got.Kvs[0].Value, []byte("k8s:enc:secretbox:v1:"+name+":"))) {
		err = fmt.Errorf("it is not encrypted with the key %s: %.60q", name, got.Kvs)
	}
	return err
}

type resumedKind struct {
	in   dynamic.ResourceInterface
	like *unstructured.Unstructured
	http *http.Client
	url  string

	upgrading *http.Client // speaks HTTP/1.1

	midway  func() // what happens in the middle; may be nil
	settled func() // waits for what it brings about; may be nil
}

func (a *resumedKind) run(t *testing.T, seed uint64) {
	ctx, cancel := context.WithCancel(t.Context())
	var watching, writing sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	first := a.like.DeepCopy()
	first.SetName("first")
	var from uint64
	eventually(t, "the first object", func() error {
		made, err := a.in.Create(ctx, first, metav1.CreateOptions{})
		if err == nil {
			from, err = strconv.ParseUint(made.GetResourceVersion(), 10, 64)
		}
		return err
	})
	var all, want []*resuming
	for i := range 8 {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		query := url.Values{"watch": {"1"}}
		if r.IntN(3) == 0 {
			query.Set("labelSelector", "l=1")
		}
		if r.IntN(4) == 0 {
			query.Set("fieldSelector", "metadata.name=o0-1")
		}
		format := formats[i%len(formats)]
		c := &resuming{last: from, what: fmt.Sprint(query, format)}
		truth := &resuming{last: from}
		own, long := maps.Clone(query), maps.Clone(query)
		watching.Go(func() { // which lasts
			for ctx.Err() == nil {
				long.Set("resourceVersion", strconv.FormatUint(truth.last, 10))
				if err := follow(ctx, a.http, a.url+"?"+long.Encode(), formats[0], truth.note); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
			}
		})
		watching.Go(func() {
			for ctx.Err() == nil {
				own.Set("resourceVersion", strconv.FormatUint(c.last, 10))
				own.Set("allowWatchBookmarks", strconv.FormatBool(r.IntN(6) > 0))
				own.Set("timeoutSeconds", strconv.Itoa(1+r.IntN(2)))
				client := a.http
				if format == overWebSocket {
					client = a.upgrading
				}
				if err := follow(ctx, client, a.url+"?"+own.Encode(), format, c.note); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
				c.moved.Add(1)
			}
		})
		all, want = append(all, c), append(want, truth)
	}
	for i := range 3 {
		writing.Go(func() { a.write(t, rand.New(rand.NewPCG(seed, uint64(100+i))), i) })
	}
	writing.Wait()
	if a.settled != nil {
		a.settled()
	}
	last := a.like.DeepCopy()
	last.SetName("last")
	testenv.Must(a.in.Create(ctx, last, metav1.CreateOptions{}))(t)
	for i, c := range all {
		eventually(t, "a client hears everything", func() error { return c.differs(want[i]) })
	}
	cancel()
	watching.Wait()
	moved, heard := int32(0), 0
	for _, c := range all {
		moved += c.moved.Load()
		heard += len(c.events)
	}
	t.Logf("%d events heard in %d watches", heard, moved)
}

func (a *resumedKind) write(t *testing.T, r *rand.Rand, writer int) {
	ctx := t.Context()
	have := map[string]*unstructured.Unstructured{}
	for i := range 150 {
		if i == 75 && writer == 0 && a.midway != nil {
			a.midway()
		}
		name := fmt.Sprintf("o%d-%d", writer, r.IntN(3))
		next := a.like.DeepCopy()
		if have[name] != nil {
			next = have[name].DeepCopy()
		}
		next.SetName(name)
		next.SetLabels(map[string]string{"l": strconv.Itoa(r.IntN(2)), "i": strconv.Itoa(i)})
		var err error
		switch {
		case have[name] == nil:
			have[name], err = a.in.Create(ctx, next, metav1.CreateOptions{})
		case r.IntN(6) == 0:
			err = a.in.Delete(ctx, name, metav1.DeleteOptions{})
			delete(have, name)
		default:
			have[name], err = a.in.Update(ctx, next, metav1.UpdateOptions{})
		}
		if err != nil {
			t.Error(err)
			return
		}
	}
}
