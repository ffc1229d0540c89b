// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/version"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	basecompatibility "k8s.io/component-base/compatibility"
	"k8s.io/component-base/featuregate"
	kubeoptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestExtraArgsReachUpstreamsOptions(t *testing.T) {
	for _, test := range []struct {
		args    []string
		wantErr []string
		check   func(*kubeoptions.ServerRunOptions) bool
	}{
		{args: []string{"event-ttl=2h"}, check: func(s *kubeoptions.ServerRunOptions) bool { return s.EventTTL == 2*time.Hour }},
		{args: []string{"--profiling"}, check: func(s *kubeoptions.ServerRunOptions) bool { return s.Features.EnableProfiling }},
		{args: []string{"max_requests_inflight=7"}, check: func(s *kubeoptions.ServerRunOptions) bool { return s.GenericServerRunOptions.MaxRequestsInFlight == 7 }},
		{args: []string{"audit-log-path=-", "audit-log-maxage=3"}, check: func(s *kubeoptions.ServerRunOptions) bool { return s.Audit.LogOptions.MaxAge == 3 }},
		{args: []string{"enable-admission-plugins=AlwaysPullImages"}, check: func(s *kubeoptions.ServerRunOptions) bool {
			return strings.Join(s.Admission.GenericAdmission.EnablePlugins, ",") == "AlwaysPullImages"
		}},
		{args: []string{"event-tll=2h"}, wantErr: []string{`"event-tll"`, `did you mean "event-ttl"?`}},
		{args: []string{"no-such-thing-at-all=1"}, wantErr: []string{`kube-apiserver has no flag "no-such-thing-at-all"`}},
		{args: []string{"event-ttl=soon"}, wantErr: []string{`kube-apiserver flag "event-ttl"`, `"soon"`}},
		{args: []string{"event-ttl"}, wantErr: []string{"event-ttl=VALUE"}},
		{args: []string{"etcd-servers=http://other:2379"}, wantErr: []string{"the store is part of the server"}},
		{args: []string{"v=4"}, wantErr: []string{"one log"}},
		{args: []string{"secure-port=1", "x=y"}, wantErr: []string{"--https-listen-port", `"x"`}},
	} {
		s := kubeoptions.NewServerRunOptions()
		err := applyExtraArgs(s, test.args)
		if len(test.wantErr) == 0 {
			testenv.False(t, err != nil || !test.check(s), "%v: %v, or no effect", test.args, err)
			continue
		}
		for _, want := range test.wantErr {
			testenv.False(t, err == nil || !strings.Contains(err.Error(), want), "%v: error %v, want one with %s", test.args, err, want)
		}
	}
}

// TestOperatorsArgumentsGoBeforeOurs: what is stricter than upstream's, and that an argument of the operator's goes
// before it.
func TestOperatorsArgumentsGoBeforeOurs(t *testing.T) {
	s := kubeoptions.NewServerRunOptions()
	testenv.NoError(t, setOptions(s, Options{}.withDefaults()))
	if s.Authentication.ServiceAccounts.ExtendExpiration || len(s.SecureServing.CipherSuites) != 6 {
		t.Errorf("tokens are extended: %t, cipher suites %v", s.Authentication.ServiceAccounts.ExtendExpiration, s.SecureServing.CipherSuites)
	}
	const weak = "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA"
	testenv.NoError(t, applyExtraArgs(s, []string{"service-account-extend-token-expiration=true", "tls-cipher-suites=" + weak}))
	if !s.Authentication.ServiceAccounts.ExtendExpiration || !slices.Equal(s.SecureServing.CipherSuites, []string{weak}) {
		t.Errorf("against the operator's arguments: tokens are extended: %t, cipher suites %v", s.Authentication.ServiceAccounts.ExtendExpiration, s.SecureServing.CipherSuites)
	}
}

// TestArgumentCheckLeavesFeatureGatesAlone looks for mistakes as before a start; a check must leave no trace in the
// process' feature gates.
func TestArgumentCheckLeavesFeatureGatesAlone(t *testing.T) {
	gate, all := "", utilfeature.DefaultMutableFeatureGate.GetAll() // the first that may be set
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if spec := all[name]; gate == "" && !spec.LockToDefault && spec.PreRelease == featuregate.Beta {
			gate = string(name)
		}
	}
	was := utilfeature.DefaultFeatureGate.Enabled(featuregate.Feature(gate))
	for args, want := range map[string]string{
		"event-ttl=2h":                          "",
		"feature-gates=" + gate + "=false":      "",
		"feature-gates=kube:" + gate + "=false": "",
		"event-tll=2h":                          `kube-apiserver has no flag "event-tll"; did you mean "event-ttl"?`,
		"feature-gates=Nonsense=true":           `kube-apiserver flag "feature-gates": unrecognized feature gate: Nonsense`,
		"feature-gates=kube:Nonsense=true":      "Nonsense",
		"feature-gates=" + gate + "=maybe":      "maybe",
		"etcd-servers=http://127.0.0.1:2379":    "the store is part of the server",
		"feature-gates=AllBeta=true":            "",

		"feature-gates=UnknownVersionInteroperabilityProxy=false":     "",
		"feature-gates=UnknownVersionInteroperabilityProxy=true":      "loses the leader's term",
		"feature-gates=kube:UnknownVersionInteroperabilityProxy=true": "loses the leader's term",
		"feature_gates=UnknownVersionInteroperabilityProxy=true":      "loses the leader's term",
	} {
		err := CheckArgs([]string{args})
		testenv.False(t, (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want),
			"%s: error %v, want one with %q", args, err, want)
	}
	if err := CheckArgs([]string{"event-tll=2h", "max-request-inflight=3"}); err == nil || strings.Count(err.Error(), "did you mean") != 2 {
		t.Errorf("two mistakes: %v", err)
	}
	testenv.True(t, utilfeature.DefaultFeatureGate.Enabled(featuregate.Feature(gate)) == was, "the check changed the feature gate %s of this process", gate)
}

// TestFilteredWatchEndsWithItsFilters: where something happens at a watch's end, it stays in its filters until then.
func TestFilteredWatchEndsWithItsFilters(t *testing.T) {
	const gate = "APIServingWithRoutine="
	for args, want := range map[string]bool{
		"": true, "event-ttl=2h": true, "audit-policy-file=": true,
		"audit-policy-file=/etc/coracle/audit.yaml": false, "--audit-webhook-config-file=/etc/coracle/hook.yaml": false, "tracing-config-file=/etc/coracle/tracing.yaml": false,
		"audit_policy_file=/etc/coracle/audit.yaml": false, "tracing_config_file=/etc/coracle/tracing.yaml": false, "shutdown-watch-termination-grace-period=10s": false,
	} {
		got := defaultFeatureGates([]string{args})
		if on, off := strings.Contains(got, gate+"true"), strings.Contains(got, gate+"false"); on != want || off == want {
			t.Errorf("%q: the gate is on: %t, off: %t, want it on: %t", args, on, off, want)
		}
	}
	for _, args := range []string{"feature-gates=kube:AllBeta=true", "feature_gates=kube:AllBeta=true"} {
		testenv.Contains(t, defaultFeatureGates([]string{args}), "kube:"+gate+"true", "beside %s there is", args)
	}
}

func TestNodeRestrictionStays(t *testing.T) {
	for args, want := range map[string]string{
		"": "NodeRestriction", "enable-admission-plugins=AlwaysPullImages": "AlwaysPullImages,NodeRestriction",
		"enable-admission-plugins=NodeRestriction": "NodeRestriction", "disable-admission-plugins=NodeRestriction": "",
	} {
		s := kubeoptions.NewServerRunOptions()
		if args != "" {
			testenv.NoError(t, applyExtraArgs(s, []string{args}))
		}
		ensureNodeRestriction(s)
		testenv.Equal(t, strings.Join(s.Admission.GenericAdmission.EnablePlugins, ","), want, "%q: plugins", args)
	}
}

// TestRefusedFlagsExistUpstream wants every flag that we refuse to be one that upstream has, so that the list does not
// rot.
func TestRefusedFlagsExistUpstream(t *testing.T) {
	named := kubeoptions.NewServerRunOptions().Flags()
	for name := range ownFlags {
		found := false
		for _, fs := range named.FlagSets {
			found = found || fs.Lookup(name) != nil
		}
		testenv.True(t, found, "kube-apiserver has no flag %q any more", name)
	}
}

func TestAnonymousRequestsAreRestricted(t *testing.T) {
	for _, test := range []struct {
		name     string
		args     []string
		wantFile func(dir string) string
	}{
		{"by default", nil, func(dir string) string { return filepath.Join(dir, "authentication.yaml") }},
		{"their own file", []string{"authentication-config=/etc/own.yaml"}, func(string) string { return "/etc/own.yaml" }},
		{"their own flag", []string{"anonymous-auth=false"}, func(string) string { return "" }},
		{"OIDC flags", []string{"oidc-issuer-url=https://id.example.com", "oidc-client-id=coracle", "oidc-groups-claim=groups"},
			func(dir string) string { return filepath.Join(dir, "authentication.yaml") }},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			s := kubeoptions.NewServerRunOptions()
			testenv.NoError(t, applyExtraArgs(s, test.args))
			testenv.NoError(t, restrictAnonymous(s, Options{ConfigDir: dir, AnonymousHealthOnly: true}))
			want := test.wantFile(dir)
			testenv.Require(t, s.Authentication.AuthenticationConfigFile == want,
				"file %q, want %q", s.Authentication.AuthenticationConfigFile, want)
			if !strings.HasPrefix(want, dir) {
				return
			}
			s.Authentication.ServiceAccounts.Issuers, s.Authentication.ServiceAccounts.KeyFiles = nil, nil
			config, err := s.Authentication.ToAuthenticationConfig()
			if err != nil {
				data, _ := os.ReadFile(want)
				t.Fatalf("upstream does not take the file: %v\n%s", err, data)
			}
			testenv.False(t, !config.Anonymous.Enabled || len(config.Anonymous.Conditions) != 3, "anonymous: %+v", config.Anonymous)
			if hasOIDC := len(config.AuthenticationConfig.JWT) == 1; hasOIDC != (len(test.args) > 0) {
				t.Errorf("JWT: %+v", config.AuthenticationConfig.JWT)
			}
		})
	}
}

func TestMissingOptionsAreNamed(t *testing.T) {
	err := Options{Cluster: clusterconfig.Settings{ServiceCIDRs: make([]netip.Prefix, 3)}, AdvertiseAddress: net.IPv4(1, 1, 1, 1)}.validate()
	for _, want := range []string{"TLSCertFile", "ClientCAFile", "ServiceAccountKeyFiles", "ServiceCIDRs", "ConfigDir", "Port"} {
		testenv.WantError(t, err, want)
	}
}

// TestEmulatedVersionIsNotAboveTheLevel: a flag may ask for an older Kubernetes than that of the cluster's level, and
// for no newer one.
func TestEmulatedVersionIsNotAboveTheLevel(t *testing.T) {
	for flag, refused := range map[string]bool{"": false, "1.35": false, "1.36": false, "1.37": true} {
		registry := basecompatibility.NewComponentGlobalsRegistry()
		effective := basecompatibility.NewEffectiveVersionFromString("1.37", "1.34", "1.34")
		testenv.NoError(t, registry.Register(basecompatibility.DefaultKubeComponent, effective, nil))
		effective.SetEmulationVersion(version.MustParseGeneric("1.36")) // as the level has it
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		registry.AddFlags(flags)
		if flag != "" {
			testenv.NoError(t, flags.Set("emulated-version", flag))
		}
		err := applyGates(registry)
		testenv.Equal(t, err != nil, refused, "emulated-version %q is refused (%v):", flag, err)
	}
}
