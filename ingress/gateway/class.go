// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"fmt"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/gateway-api/pkg/features"
)

// BundleVersionAnnotation is the annotation of a Gateway API CRD with its version.
const BundleVersionAnnotation = "gateway.networking.k8s.io/bundle-version"

// BundleVersion is the supported version of the Gateway API. A cluster gets the CRDs of this version.
const BundleVersion = "v1.6.3"

// supportedNames are the names of the supported features. They do not depend on the cluster.
var supportedNames = []features.FeatureName{
	features.SupportBackendTLSPolicy,
	features.SupportBackendTLSPolicySANValidation,
	features.SupportGRPCRoute,
	features.SupportGRPCRouteNamedRouteRule,
	features.SupportGateway,
	features.SupportGatewayAddressEmpty,
	features.SupportGatewayBackendClientCertificate,
	features.SupportGatewayFrontendClientCertificateValidation,
	features.SupportGatewayFrontendClientCertificateValidationInsecureFallback,
	features.SupportGatewayHTTPListenerIsolation,
	features.SupportGatewayHTTPSListenerDetectMisdirectedRequests,
	features.SupportGatewayInfrastructure,
	features.SupportGatewayPort8080,
	features.SupportGatewayStaticAddresses,
	features.SupportHTTPRoute,
	features.SupportHTTPRoute303RedirectStatusCode,
	features.SupportHTTPRoute307RedirectStatusCode,
	features.SupportHTTPRoute308RedirectStatusCode,
	features.SupportHTTPRouteBackendProtocolH2C,
	features.SupportHTTPRouteBackendProtocolWebSocket,
	features.SupportHTTPRouteBackendRequestHeaderModification,
	features.SupportHTTPRouteBackendTimeout,
	features.SupportHTTPRouteCORS,
	features.SupportHTTPRouteDestinationPortMatching,
	features.SupportHTTPRouteHostRewrite,
	features.SupportHTTPRouteMethodMatching,
	features.SupportHTTPRouteNamedRouteRule,
	features.SupportHTTPRouteParentRefPort,
	features.SupportHTTPRoutePathRedirect,
	features.SupportHTTPRoutePathRewrite,
	features.SupportHTTPRoutePortRedirect,
	features.SupportHTTPRouteQueryParamMatching,
	features.SupportHTTPRouteRequestMirror,
	features.SupportHTTPRouteRequestMultipleMirrors,
	features.SupportHTTPRouteRequestPercentageMirror,
	features.SupportHTTPRouteRequestTimeout,
	features.SupportHTTPRouteResponseHeaderModification,
	features.SupportHTTPRouteSchemeRedirect,
	features.SupportListenerSet,
	features.SupportReferenceGrant,
	features.SupportTLSRoute,
	features.SupportTLSRouteModeMixed,
	features.SupportTLSRouteModeTerminate,
}

// supportedFeatures returns the supported features sorted by name, as the API requires.
func supportedFeatures() []gatewayv1.SupportedFeature {
	out := make([]gatewayv1.SupportedFeature, 0, len(supportedNames))
	for _, f := range supportedNames {
		out = append(out, gatewayv1.SupportedFeature{Name: gatewayv1.FeatureName(f)})
	}
	slices.SortFunc(out, func(a, b gatewayv1.SupportedFeature) int { return strings.Compare(string(a.Name), string(b.Name)) })
	return out
}

// classes returns the classes of this controller with their problems. It adds their status to the result.
func (c *compiler) classes() map[gatewayv1.ObjectName]problem {
	out := map[gatewayv1.ObjectName]problem{}
	for _, class := range c.s.Classes {
		if class.Spec.ControllerName != ControllerName {
			continue
		}
		var p problem
		if class.Spec.ParametersRef != nil {
			p = problem{string(gatewayv1.GatewayClassReasonInvalidParameters), "spec.parametersRef is set: this controller has no " +
				"parameters, remove it"}
		}
		out[gatewayv1.ObjectName(class.Name)] = p
		want := []metav1.Condition{newCondition(gatewayv1.GatewayClassConditionStatusAccepted, gatewayv1.GatewayClassReasonAccepted, p,
			"Gateways of this class are served")}
		if have := c.s.CRDVersion; have != "" {
			var unknown problem
			if minorVersion(have) != minorVersion(BundleVersion) {
				unknown = problem{
					string(gatewayv1.GatewayClassReasonUnsupportedVersion),
					fmt.Sprintf("the cluster has CRDs of the Gateway API %s: %s is supported, others as far as they are the same", have,
						BundleVersion),
				}
			}
			want = append(want, newCondition(gatewayv1.GatewayClassConditionStatusSupportedVersion,
				gatewayv1.GatewayClassReasonSupportedVersion, unknown,
				"the cluster has CRDs of the Gateway API "+have))
		}
		status := *class.Status.DeepCopy()
		status.Conditions = mergeConditions(status.Conditions, class.Generation, c.s.Now, want)
		status.SupportedFeatures = supportedFeatures()
		c.r.ClassStatus[class.Name] = status
	}
	return out
}

// minorVersion returns a version without the text after its last dot.
func minorVersion(version string) string {
	if at := strings.LastIndexByte(version, '.'); at > 0 {
		return version[:at]
	}
	return version
}
