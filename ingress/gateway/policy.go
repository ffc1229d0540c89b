// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"

	"github.com/coracle-k8s/coracle/ingress/table"
)

// policy is a BackendTLSPolicy with the results of checking it.
type policy struct {
	object        *gatewayv1.BackendTLSPolicy
	flaw          problem // of its validation
	missingTarget problem // of a target
	accepted      problem
	refs          problem
	tls           table.BackendTLS // without the proxy's own certificate
	found         authorities
	// olderPolicy is the name of an older policy with one of the same targets.
	olderPolicy string
	targets     map[types.NamespacedName]bool
	// ancestors are the Gateways with routes to a target. They may be more than the status may have.
	ancestors map[types.NamespacedName]bool
}

// target is a Service, or one of its ports.
type target struct {
	service types.NamespacedName
	port    string // the name of the port; empty for all
}

type policies map[target]*policy

// policyFor returns the policy for a port of a Service, or nil. A policy that names the port has precedence.
func (p policies) policyFor(service types.NamespacedName, port string) *policy {
	if port != "" {
		if out := p[target{service, port}]; out != nil {
			return out
		}
	}
	return p[target{service, ""}]
}

// readPolicies collects the policies that name a Service.
func (c *compiler) readPolicies() {
	c.policies = policies{}
	for _, object := range byAge(c.s.Policies) {
		if object.DeletionTimestamp != nil {
			continue
		}
		p := &policy{object: object, targets: map[types.NamespacedName]bool{}, ancestors: map[types.NamespacedName]bool{}}
		c.allPolicies = append(c.allPolicies, p)
		var missing problem
		for _, t := range object.Spec.TargetRefs {
			if t.Group != "" || t.Kind != "Service" {
				missing = problem{string(gatewayv1.PolicyReasonInvalid),
					fmt.Sprintf("a target is of the kind %s in the group %q: only Services are served", t.Kind, t.Group)}
				continue
			}
			at := target{types.NamespacedName{Namespace: object.Namespace, Name: string(t.Name)}, string(ptr.Deref(t.SectionName, ""))}
			if other := c.policies[at]; other != nil && other != p {
				p.olderPolicy = other.object.Name
			} else {
				c.policies[at] = p
			}
			p.targets[at.service] = true
			missing = firstProblem(missing, c.missingTarget(at))
		}
		c.validation(p)
		p.missingTarget = missing
	}
}

func (c *compiler) judgePolicies() {
	for _, p := range c.allPolicies {
		var beaten problem
		if p.olderPolicy != "" {
			beaten = problem{string(gatewayv1.PolicyReasonConflicted), fmt.Sprintf("the older BackendTLSPolicy %s has the same target",
				p.olderPolicy)}
		}
		p.accepted = firstProblem(beaten, p.flaw, p.missingTarget)
	}
}

func (c *compiler) missingTarget(at target) problem {
	notFound := string(gatewayv1.PolicyReasonTargetNotFound)
	service := c.service(at.service)
	switch {
	case service == nil:
		return problem{notFound, fmt.Sprintf("there is no Service %s", at.service)}
	case at.port != "" && !slices.ContainsFunc(service.Spec.Ports, func(s corev1.ServicePort) bool { return s.Name == at.port }):
		return problem{notFound, fmt.Sprintf("the Service %s has no port with the name %s", at.service, at.port)}
	}
	return problem{}
}

// validation reads how backends' certificates are verified.
func (c *compiler) validation(p *policy) {
	v := p.object.Spec.Validation
	p.tls = table.BackendTLS{ServerName: string(v.Hostname)}
	for _, n := range v.SubjectAltNames {
		switch {
		case n.Type == gatewayv1.HostnameSubjectAltNameType && n.Hostname != "":
			p.tls.Names = append(p.tls.Names, string(n.Hostname))
		case n.Type == gatewayv1.URISubjectAltNameType && n.URI != "":
			p.tls.Names = append(p.tls.Names, string(n.URI))
		default:
			p.flaw = problem{string(gatewayv1.PolicyReasonInvalid), fmt.Sprintf("a subjectAltName of the type %q has no value of its type",
				n.Type)}
		}
	}
	if v.Hostname == "" {
		p.flaw = problem{string(gatewayv1.PolicyReasonInvalid), "validation.hostname is empty"}
	}
	if len(v.CACertificateRefs) == 0 {
		if ptr.Deref(v.WellKnownCACertificates, "") != gatewayv1.WellKnownCACertificatesSystem {
			p.flaw = firstProblem(p.flaw, problem{
				string(gatewayv1.PolicyReasonInvalid),
				fmt.Sprintf("validation names no caCertificateRefs, and wellKnownCACertificates %q is not served: %s is",
					ptr.Deref(v.WellKnownCACertificates, ""), gatewayv1.WellKnownCACertificatesSystem),
			})
		}
		return
	}
	refs := make([]gatewayv1.ObjectReference, 0, len(v.CACertificateRefs))
	for _, r := range v.CACertificateRefs {
		refs = append(refs, gatewayv1.ObjectReference{Group: r.Group, Kind: r.Kind, Name: r.Name})
	}
	p.found, p.refs = c.authoritiesOf(referrer{"BackendTLSPolicy", p.object.Namespace}, refs, reasons{
		invalid: string(gatewayv1.BackendTLSPolicyReasonInvalidCACertificateRef), kind: string(gatewayv1.BackendTLSPolicyReasonInvalidKind),
	})
	p.tls.Authorities = p.found.key
	if p.found.key == "" {
		p.flaw = firstProblem(p.flaw, problem{string(gatewayv1.BackendTLSPolicyReasonNoValidCACertificate), "no authority can be used: " +
			p.refs.message})
	}
}

// maxAncestors is the greatest number that the API server accepts.
const maxAncestors = 16

// finishPolicies adds the status of each policy, and the authorities of the policies in use.
func (c *compiler) finishPolicies() error {
	for _, p := range c.allPolicies {
		if p.found.key != "" && len(p.ancestors) > 0 {
			if err := c.r.Sections.Put(p.found.key, p.found.section()); err != nil {
				return err
			}
		}
		have := p.object.Status.Ancestors
		isOwn := func(a gatewayv1.PolicyAncestorStatus) bool { return a.ControllerName == ControllerName }
		if len(p.ancestors) == 0 && !slices.ContainsFunc(have, isOwn) {
			continue
		}
		out := slices.DeleteFunc(slices.Clone(have), isOwn)
		for _, name := range sortedNames(p.ancestors) {
			if len(out) == maxAncestors {
				break
			}
			ref := gatewayv1.ParentReference{
				Group: new(gatewayv1.Group(gatewayv1.GroupName)), Kind: new(gatewayv1.Kind("Gateway")),
				Namespace: new(gatewayv1.Namespace(name.Namespace)), Name: gatewayv1.ObjectName(name.Name),
			}
			var before []metav1.Condition
			for _, a := range have {
				if isOwn(a) && sameParent(a.AncestorRef, ref) {
					before = a.Conditions
				}
			}
			out = append(out, gatewayv1.PolicyAncestorStatus{AncestorRef: ref, ControllerName: ControllerName,
				Conditions: mergeConditions(before, p.object.Generation, c.s.Now, []metav1.Condition{
					newCondition(gatewayv1.PolicyConditionAccepted, gatewayv1.PolicyReasonAccepted, p.accepted,
						"connections to the target are made as the policy says"),
					newCondition(gatewayv1.BackendTLSPolicyConditionResolvedRefs, gatewayv1.BackendTLSPolicyReasonResolvedRefs, p.refs,
						"all references are resolved"),
				})})
		}
		c.r.PolicyStatus[nameOf(p.object)] = gatewayv1.PolicyStatus{Ancestors: out}
	}
	return nil
}
