// SPDX-License-Identifier: Apache-2.0

package compile

// Support says what is made of an annotation of ingress-nginx.
type Support string

const (
	// Done annotations are served.
	Done Support = "done"
	// Ignored annotations only tune what is not tuned here: an event says so, and the routes are served.
	Ignored Support = "ignored"
	// Refused annotations may restrict access or change content, and are not served: the routes answer 503, and an
	// event says so.
	Refused Support = "refused"
)

// Annotation is one of ingress-nginx's.
type Annotation struct {
	Name    string
	Support Support
	// Note says in one sentence how it differs, or what to do instead; empty where there is nothing to say.
	Note string
}

const (
	snippetNote = "Snippets are text of nginx's configuration, of which there is none here; they cannot be served."
	wafNote     = "There is no ModSecurity here; a firewall for web applications has to stand before the cluster or beside the application."
	streams     = "Bodies are never kept on disk, and pieces are sent as they come."
)
