// SPDX-License-Identifier: Apache-2.0

package compile

// Support says how an annotation of ingress-nginx is treated.
type Support string

const (
	// Done annotations are supported.
	Done Support = "done"
	// Ignored annotations only tune what cannot be tuned in coracle. An event says so, and the routes are served.
	Ignored Support = "ignored"
	// Refused annotations may restrict access or change content, and are not supported. The routes answer 503, and an
	// event says so.
	Refused Support = "refused"
)

// Annotation is an annotation of ingress-nginx.
type Annotation struct {
	Name    string
	Support Support
	// Note is one sentence about differences, or about what to do instead; empty for none.
	Note string
}

const (
	snippetNote = "Snippets are text of nginx's configuration, of which there is none here; they cannot be served."
	wafNote     = "There is no ModSecurity here; a firewall for web applications has to stand before the cluster or beside the application."
	streamsNote = "Bodies are never kept on disk, and pieces are sent as they come."
)
