// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"time"

	"github.com/coracle-k8s/coracle/internal/preflight"
	"github.com/coracle-k8s/coracle/internal/resolvconf"
	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/internal/timers"
)

const (
	// partSearchList is the status line about the search list that pods inherit. It does not exist until there is
	// something wrong.
	partSearchList = "search list"
	// searchListCheck is how often the search list is checked.
	searchListCheck = 10 * time.Minute
)

// watchSearchList reports domains in the search list that pods inherit, if every name below them exists. A search list
// that is empty costs no query. wildcards is resolvconf.Wildcards outside of tests.
func watchSearchList(ctx context.Context, o Options, wildcards func(context.Context, string) ([]string, error)) error {
	shown := false
	for {
		file := resolvconf.File(o.ResolvConf)
		switch found, err := wildcards(ctx, file); {
		case len(found) > 0:
			text := preflight.WildcardFound(file, found) + ". Cluster names are not affected: " + preflight.WildcardRemedy
			o.statusPart(partSearchList).Set(status.Degraded, text)
			shown = true
		case err == nil && shown:
			o.statusPart(partSearchList).Set(status.Running, "outside names are looked up as they are again")
		}
		if !timers.Sleep(ctx, searchListCheck) {
			return nil
		}
	}
}
