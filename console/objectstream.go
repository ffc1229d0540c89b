// SPDX-License-Identifier: Apache-2.0

package console

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// watchObject sends an object and each later version of it.
func (st *stream) watchObject(ctx context.Context, at string) error {
	if err := objectPath(at); err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	wait, ok := retryFirst, true
	for {
		var o anyObject
		started := time.Now()
		err := st.s.u.get(ctx, at, nil, &o)
		switch {
		case ctx.Err() != nil:
			return errClosed
		case err != nil && !isTemporary(err):
			return err
		case err != nil:
			ok = false
			_, reason, text := explainError(err)
			if err := st.send(message{"type": "state", "ok": false, "reason": reason, "message": text}); err != nil {
				return err
			}
		default:
			if !ok {
				ok = true
				if err := st.send(message{"type": "state", "ok": true}); err != nil {
					return err
				}
			}
			if err := st.sendObject(ctx, o); err != nil {
				return err
			}
			if ended, err := st.followObject(ctx, at, o.resourceVersion()); ended {
				return err
			}
		}
		if time.Since(started) > shortRound {
			wait = retryFirst
		}
		if !waitDoubling(ctx, &wait) {
			return errClosed
		}
	}
}

// followObject sends each version from a watch, until the watch ends. It returns ended when the object was deleted. It
// also does so when the user may read but not watch the object, which the page has already.
func (st *stream) followObject(ctx context.Context, at, rv string) (ended bool, err error) {
	collection, name := path.Split(at)
	query := url.Values{"watch": {"true"}, "fieldSelector": {"metadata.name=" + name}, "resourceVersion": {rv}}
	response, err := st.s.u.request(ctx, http.MethodGet, path.Clean(collection), query, http.Header{"Accept": {"application/json"}}, nil)
	if err != nil {
		return false, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		refused := statusError(response)
		return !isTemporary(refused) && !apierrors.IsResourceExpired(refused) && !apierrors.IsGone(refused), nil
	}
	limited := &io.LimitedReader{R: response.Body, N: maxEvent}
	for d := json.NewDecoder(limited); ; limited.N = maxEvent {
		var e event
		if err := d.Decode(&e); err != nil {
			return false, fmt.Errorf("watching: %w", err)
		}
		switch e.Type {
		case "ERROR":
			return false, eventError(e.Object)
		case "DELETED":
			return true, st.send(message{"type": "deleted"})
		}
		var o anyObject
		if err := json.Unmarshal(e.Object, &o); err != nil {
			return false, fmt.Errorf("watching: %w", err)
		}
		if err := st.sendObject(ctx, o); err != nil {
			return true, err
		}
	}
}

func (st *stream) sendObject(ctx context.Context, o anyObject) error {
	if err := st.acquirePage(ctx); err != nil {
		return err
	}
	defer st.leavePage()
	release, err := st.s.h.texts.acquire(ctx, st.s.name)
	if err != nil {
		return errClosed
	}
	a, err := newObjectResponse(o)
	release()
	if err != nil {
		return err
	}
	return st.send(message{"type": "object", "object": a.Object, "yaml": a.YAML})
}
