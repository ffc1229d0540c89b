// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"maps"
	"slices"
	"strings"

	networkingv1 "k8s.io/api/networking/v1"
)

// Effect is what a Finding means for a user who moves from another ingress controller.
type Effect string

const (
	// EffectRefused is for what is not served: a route that answers 503, or a rule, a host or a user that is left out.
	EffectRefused Effect = "refused"
	// EffectBroken is for what no ingress controller can serve as the Ingress asks, such as a Secret that is missing.
	EffectBroken Effect = "broken"
	// EffectDifferent is for what is served in another way than by ingress-nginx.
	EffectDifferent Effect = "different"
	// EffectIgnored is for a setting that has no effect.
	EffectIgnored Effect = "ignored"
)

var effects = map[string]Effect{
	ReasonPathTaken: EffectBroken, ReasonHostTaken: EffectRefused, ReasonUnsupported: EffectRefused, ReasonBadHost: EffectRefused,
	ReasonSecret: EffectBroken, ReasonExpiring: EffectBroken, ReasonExpired: EffectBroken, ReasonUnreachable: EffectRefused,
	ReasonAuthorities: EffectRefused, ReasonCertificate: EffectDifferent, ReasonIgnored: EffectIgnored,
	ReasonDifferent: EffectDifferent,
	ReasonUsers:     EffectRefused, ReasonService: EffectBroken, ReasonTooLarge: EffectRefused, ReasonCostly: EffectDifferent,
}

// Effect returns the effect of a finding. It follows from the reason.
func (f Finding) Effect() Effect { return effects[f.Reason] }

// Differences returns a finding for each annotation of an Ingress that is served in another way than by ingress-nginx.
// They are no findings of Desired, since each Ingress that was made here would have some.
func Differences(ing *networkingv1.Ingress) []Finding {
	var out []Finding
	for _, name := range slices.Sorted(maps.Keys(ing.Annotations)) {
		short, ok := strings.CutPrefix(name, nginxPrefix)
		a, known := annotationOf(short)
		if ok && known && a.Support == Done && a.Note != "" && strings.TrimSpace(ing.Annotations[name]) != "" {
			out = append(out, Finding{ReasonDifferent, name, a.Note})
		}
	}
	return out
}
