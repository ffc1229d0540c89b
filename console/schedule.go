// SPDX-License-Identifier: Apache-2.0

package console

import (
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// schedule answers with the next run of a CronJob's schedule. A schedule without a time zone is taken as UTC, which
// most servers use: the API does not give the zone of the cluster's controller.
func (h *Handler) schedule(r *http.Request, _ *user) (any, error) {
	next, err := nextRun(r.URL.Query().Get("schedule"), r.URL.Query().Get("zone"), time.Now())
	if err != nil {
		return nil, newRequestError(http.StatusBadRequest, "%s", err)
	}
	return map[string]string{"next": next}, nil
}

// nextRun returns the first time after now at which a schedule runs (RFC 3339).
func nextRun(text, zone string, now time.Time) (string, error) {
	if len(text) > 200 || strings.Contains(text, "TZ") { // Kubernetes refuses a time zone inside a schedule, too
		return "", fmt.Errorf("%.200q is not the schedule of a CronJob", text)
	}
	schedule, err := cron.ParseStandard(text)
	if err != nil {
		return "", fmt.Errorf("this is not the schedule of a CronJob: %w", err)
	}
	in, err := time.LoadLocation(zone)
	if err != nil {
		return "", fmt.Errorf("the time zone of the schedule: %w", err)
	}
	next := schedule.Next(now.In(in))
	if next.IsZero() {
		return "", fmt.Errorf("the schedule %q never runs", text)
	}
	return next.Format(time.RFC3339), nil
}
