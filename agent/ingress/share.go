// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// eventTimeout limits the time for writing an event.
const eventTimeout = 5 * time.Second

// useTable makes a table that a server sent the node's table. If it takes more than half of the proxy's memory by the
// server's estimates, it leaves out namespaces: those that take most, until the others fit. That depends on the table
// and the limit alone, so a namespace is served again once its objects are smaller.
func (n *Node) useTable(ctx context.Context, received table.Sections) {
	charges, others := chargesOf(received)
	out := heaviest(charges, others, n.groups().memory/2)
	n.table, n.backends = withoutNamespaces(received, out), nil
	for namespace, c := range out {
		if old, was := n.leftOut[namespace]; was && old == c {
			continue
		}
		text := fmt.Sprintf("the Ingresses and routes of the namespace %s answer 503: by estimate they take %d MiB of memory in the proxies, more "+
			"than those of any other namespace that is served, and all together more than half of what this node's proxy may have. "+
			"Fewer or smaller paths, expressions, Secrets, and names and networks in annotations make room, as does a larger --ingress-memory",
			namespace, c.Bytes>>20)
		n.o.Logger.Warn("ingress: " + text)
		if n.o.Event == nil {
			continue
		}
		limited, cancel := context.WithTimeout(ctx, eventTimeout)
		if err := n.o.Event(limited, c, text); err != nil && ctx.Err() == nil {
			n.o.Logger.Warn("ingress: the event about a namespace that is left out could not be written", "namespace", namespace, "error", err)
		}
		cancel()
	}
	n.leftOut = out
}

// leftOutText returns what the status line says of namespaces that are left out; empty for none.
func (n *Node) leftOutText() string {
	if len(n.leftOut) == 0 {
		return ""
	}
	var out []string
	for _, namespace := range slices.Sorted(maps.Keys(n.leftOut)) {
		out = append(out, fmt.Sprintf("%s (%d MiB)", namespace, n.leftOut[namespace].Bytes>>20))
	}
	return fmt.Sprintf("the Ingresses and routes of %s answer 503, since those of all namespaces would take more than half of the proxy's memory "+
		"by estimate: fewer or smaller ones make room, as does a larger --ingress-memory, which is %dMi", strings.Join(out, ", "),
		n.groups().memory>>20)
}

// chargesOf returns the charges of all compilers by namespace, and the sum of those that are named nowhere.
func chargesOf(s table.Sections) (charges map[string]table.Charge, others int64) {
	charges = map[string]table.Charge{}
	for _, key := range slices.Sorted(maps.Keys(s)) {
		var from table.Charges
		if table.Kind(key) != table.KindCharges || json.Unmarshal(s[key], &from) != nil { // those of a later version
			continue
		}
		others += from.Others
		for _, c := range from.Namespaces {
			c.Bytes += charges[c.Namespace].Bytes
			charges[c.Namespace] = c
		}
	}
	return charges, others
}

// heaviest returns the namespaces to leave out so that the others take at most most bytes.
func heaviest(charges map[string]table.Charge, others, most int64) map[string]table.Charge {
	sum, out := others, map[string]table.Charge{}
	for _, c := range charges {
		sum += c.Bytes
	}
	for _, c := range slices.SortedFunc(maps.Values(charges), func(a, b table.Charge) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), strings.Compare(a.Namespace, b.Namespace))
	}) {
		if sum <= most {
			break
		}
		out[c.Namespace] = c
		sum -= c.Bytes
	}
	return out
}

// withoutNamespaces returns a table whose routes of the given namespaces answer 503. A host that has no other routes
// has a single one, without its certificate. The routes at hosts that other namespaces share keep their conditions, so
// that their requests do not go to others. Sections that nothing names any more are left out.
func withoutNamespaces(s table.Sections, namespaces map[string]table.Charge) table.Sections {
	out := table.Sections{}
	for key, value := range s {
		if table.Kind(key) == table.KindCharges {
			continue
		}
		if out[key] = value; table.Kind(key) != table.KindHost || len(namespaces) == 0 {
			continue
		}
		var h table.Host
		if json.Unmarshal(value, &h) != nil { // the proxy closes it
			continue
		}
		if _, name, _ := table.HostOf(key); closeRoutes(&h, name, namespaces) {
			if err := out.Put(key, h); err != nil {
				delete(out, key) // a host consists of what JSON holds
			}
		}
	}
	if len(namespaces) > 0 {
		removeUnnamed(out)
	}
	return out
}

// closeRoutes closes the routes and the stream of a host that belong to the namespaces. It returns false if none does.
func closeRoutes(h *table.Host, name string, namespaces map[string]table.Charge) bool {
	closed := 0
	for i, r := range h.Routes {
		_, rest, _ := strings.Cut(r.Object, "/")
		namespace, _, _ := strings.Cut(rest, "/")
		if _, ok := namespaces[namespace]; !ok {
			continue
		}
		closed++
		h.Routes[i] = table.Route{Path: r.Path, Kind: r.Kind, Method: r.Method, Headers: r.Headers, Query: r.Query, Object: r.Object,
			Refused: "the routes of its namespace take too much of the proxy's memory"}
	}
	stream := h.Stream != nil && len(h.Stream.Backends) > 0 && !slices.ContainsFunc(h.Stream.Backends, func(b table.Backend) bool {
		_, ok := namespaces[b.Namespace]
		return !ok
	})
	if stream {
		h.Stream = &table.Stream{}
	}
	if closed > 0 && closed == len(h.Routes) && name != "" { // requests of other hosts try the routes of the host ""
		one := h.Routes[0]
		h.Certificate, h.AskClients, h.Final = "", false, true
		h.Routes = []table.Route{{Path: "/", Kind: table.PathPrefix, Object: one.Object, Refused: one.Refused}}
	}
	return closed > 0 || stream
}

// removeUnnamed removes the certificates, authorities and users whose key is no string in any host or site.
func removeUnnamed(s table.Sections) {
	kinds := []string{table.KindCertificate, table.KindAuthorities, table.KindUsers}
	named := map[string]bool{table.DefaultCertificateKey: true}
	for key, value := range s {
		if kind := table.Kind(key); kind != table.KindHost && kind != table.KindSite {
			continue
		}
		for in := json.NewDecoder(bytes.NewReader(value)); ; {
			token, err := in.Token()
			if err != nil { // the end
				break
			}
			if text, ok := token.(string); ok && slices.Contains(kinds, table.Kind(text)) {
				named[text] = true
			}
		}
	}
	maps.DeleteFunc(s, func(key string, _ json.RawMessage) bool {
		return slices.Contains(kinds, table.Kind(key)) && !named[key]
	})
}
