// SPDX-License-Identifier: Apache-2.0

package compile

// Effect is what a Finding means for who moves from another ingress controller.
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
	ReasonSecret: EffectBroken, ReasonAuthorities: EffectRefused, ReasonCertificate: EffectDifferent, ReasonIgnored: EffectIgnored,
	ReasonUsers: EffectRefused, ReasonService: EffectBroken, ReasonTooLarge: EffectRefused,
}

// Effect returns the effect of a finding. It follows from the reason.
func (f Finding) Effect() Effect { return effects[f.Reason] }
