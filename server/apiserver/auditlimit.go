// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/google/uuid"
	authnv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	auditinternal "k8s.io/apiserver/pkg/apis/audit"
	"k8s.io/apiserver/pkg/audit"
	"k8s.io/apiserver/pkg/authentication/user"
)

const (
	// auditPerSource and auditTotal are how many events of requests without an identity are recorded in a minute, of
	// one source and of all. With texts of maxRecordText, the events of a day have some 300 MB at most.
	auditPerSource, auditTotal = 10, 120
	// maxAuditSources is how many of the addresses that a request names as its own are kept.
	maxAuditSources = 4

	// leftOutAnnotation has the number of events that an event stands for.
	leftOutAnnotation = "coracle.dev/left-out"
)

// auditLimit is an audit backend that gets few events of requests without an identity, and none that is large.
// Otherwise such requests would fill the log, and rotate the events of others out of it. It passes on all others.
type auditLimit struct {
	audit.Backend
	limit *recordLimit
}

// limitAudit returns a limited backend, or nil if there is none.
func limitAudit(b audit.Backend) audit.Backend {
	if b == nil {
		return nil
	}
	a := &auditLimit{Backend: b, limit: &recordLimit{perSource: auditPerSource, total: auditTotal}}
	a.limit.report = a.report
	return a
}

// ProcessEvents implements audit.Sink.
func (a *auditLimit) ProcessEvents(events ...*auditinternal.Event) bool {
	if !slices.ContainsFunc(events, unidentifiedEvent) {
		return a.Backend.ProcessEvents(events...)
	}
	kept := make([]*auditinternal.Event, 0, len(events))
	for _, e := range events {
		if unidentifiedEvent(e) {
			if !a.limit.allow(eventSource(e)) {
				continue
			}
			e = shortenedEvent(e)
		}
		kept = append(kept, e)
	}
	return len(kept) == 0 || a.Backend.ProcessEvents(kept...)
}

// Shutdown implements audit.Backend.
func (a *auditLimit) Shutdown() {
	a.limit.flush()
	a.Backend.Shutdown()
}

// report writes an event that stands for those that were left out.
func (a *auditLimit) report(leftOut int) {
	now := metav1.NewMicroTime(time.Now())
	a.Backend.ProcessEvents(&auditinternal.Event{
		Level: auditinternal.LevelMetadata, AuditID: types.UID(uuid.NewString()), Stage: auditinternal.StageResponseComplete,
		User: authnv1.UserInfo{Username: user.APIServerUser}, RequestReceivedTimestamp: now, StageTimestamp: now,
		ResponseStatus: &metav1.Status{Message: fmt.Sprintf("%d more requests without an identity, of one minute at most, are left out", leftOut)},
		Annotations:    map[string]string{leftOutAnnotation: strconv.Itoa(leftOut)},
	})
}

// unidentifiedEvent says whether an event is of a request that has not authenticated.
func unidentifiedEvent(e *auditinternal.Event) bool {
	return cmp.Or(e.User.Username, user.Anonymous) == user.Anonymous
}

// eventSource returns the source of an event. Upstream puts the connection's address behind those that the request
// names.
func eventSource(e *auditinternal.Event) (source netip.Prefix) {
	if n := len(e.SourceIPs); n > 0 {
		source = sourceOf(e.SourceIPs[n-1])
	}
	return source
}

// shortenedEvent returns an event with bounded texts. The caller's event must not be changed.
func shortenedEvent(e *auditinternal.Event) *auditinternal.Event {
	c := *e
	c.RequestURI, c.Verb, c.UserAgent = shortenRecord(c.RequestURI), shortenRecord(c.Verb), shortenRecord(c.UserAgent)
	c.SourceIPs = c.SourceIPs[max(len(c.SourceIPs)-maxAuditSources, 0):]
	if e.ObjectRef != nil {
		o := *e.ObjectRef
		for _, text := range []*string{&o.Resource, &o.Namespace, &o.Name, &o.APIGroup, &o.APIVersion, &o.Subresource} {
			*text = shortenRecord(*text)
		}
		c.ObjectRef = &o
	}
	if e.ResponseStatus != nil {
		s := *e.ResponseStatus
		s.Message = shortenRecord(s.Message)
		c.ResponseStatus = &s
	}
	return &c
}
