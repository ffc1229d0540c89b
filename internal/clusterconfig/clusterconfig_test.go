// SPDX-License-Identifier: Apache-2.0

package clusterconfig_test

import (
	"encoding/json"
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func settings() clusterconfig.Settings {
	return clusterconfig.Settings{
		PodCIDRs:     []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16"), netip.MustParsePrefix("fd00:42::/56")},
		ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16"), netip.MustParsePrefix("fd00:43::/112")},
		DNS:          netip.MustParseAddr("10.43.0.10"), Domain: clusterconfig.DefaultDomain,
	}
}

func TestInvalidSettingsAreRefused(t *testing.T) {
	testenv.Check(t, settings().Validate())
	for want, spoil := range map[string]func(*clusterconfig.Settings){
		"0 networks for pods":     func(s *clusterconfig.Settings) { s.PodCIDRs = nil },
		"of one family":           func(s *clusterconfig.Settings) { s.ServiceCIDRs[1] = s.ServiceCIDRs[0] },
		"no cluster domain":       func(s *clusterconfig.Settings) { s.Domain = "" },
		"called \"warp\"":         func(s *clusterconfig.Settings) { s.NetworkBackend = "warp" },
		"for -1 seconds":          func(s *clusterconfig.Settings) { s.TolerationSeconds = -1 },
		"3 networks for Services": func(s *clusterconfig.Settings) { s.ServiceCIDRs = append(s.ServiceCIDRs, s.PodCIDRs[0]) },
	} {
		s := settings()
		spoil(&s)
		testenv.WantError(t, s.Validate(), want)
	}
}

func TestAPIAddressIsFirstOfServiceCIDR(t *testing.T) {
	s := settings()
	got, err := s.APIAddresses()
	if err != nil || clusterconfig.FlagValue(s.ServiceCIDRs) != "10.43.0.0/16,fd00:43::/112" || len(got) != 2 ||
		got[0].String() != "10.43.0.1" || got[1].String() != "fd00:43::1" {
		t.Errorf("%v, %v", got, err)
	}
	s.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.43.0.9/32")}
	testenv.Fails(t, testenv.Err(s.APIAddresses()), "a network of one address has a first one for the API")
}

// What a server tells an agent is what the agent gets.
func TestSettingsSurviveJSON(t *testing.T) {
	for _, s := range []clusterconfig.Settings{settings(), {PodCIDRs: []netip.Prefix{}, ServiceCIDRs: []netip.Prefix{}, Disabled: clusterconfig.Disabled{clusterconfig.PartDNS}}} {
		b := testenv.Must(json.Marshal(s))(t)
		var again clusterconfig.Settings
		if err := json.Unmarshal(b, &again); err != nil || !reflect.DeepEqual(s, again) {
			t.Errorf("%s became %+v, %v", b, again, err)
		}
	}
}

// TestEarlierSettingsAreRead: a cluster's stored settings and those that an earlier program sends disable what they
// did, and an earlier program reads what this one writes.
func TestEarlierSettingsAreRead(t *testing.T) {
	for _, c := range []struct {
		json string // encoded by the version before Disabled was a set
		want clusterconfig.Disabled
	}{
		{`{"podCIDRs":["10.42.0.0/16"],"serviceCIDRs":["10.43.0.0/16"],"dns":"10.43.0.10","domain":"cluster.local"}`, nil},
		{`{"podCIDRs":["10.42.0.0/16"],"serviceCIDRs":["10.43.0.0/16"],"domain":"cluster.local","noServiceProxy":true,"noNetworkPolicy":true,` +
			`"noLocalStorage":true,"networkBackend":"host-gw","balancer":{"disabled":true,"pool":["192.0.2.1-192.0.2.9"],"reservedPorts":["22"]},` +
			`"noMetrics":true,"noHelm":true,"noIngress":true,"noGateway":true,"noConsole":true,"noRuntimes":true,"noManifests":true,` +
			`"tolerationSeconds":10,"vips":["192.0.2.100"]}`, slices.DeleteFunc(clusterconfig.Parts(), func(part string) bool {
			return part == clusterconfig.PartContent // a later one
		})},
	} {
		var s clusterconfig.Settings
		testenv.NoError(t, json.Unmarshal([]byte(c.json), &s))
		testenv.EqualSlices(t, s.Disabled, c.want, "")
		var was, is map[string]any
		testenv.NoError(t, errors.Join(json.Unmarshal([]byte(c.json), &was), json.Unmarshal(testenv.Must(json.Marshal(s))(t), &is)))
		testenv.True(t, reflect.DeepEqual(was, is), "%v became %v", was, is)
	}
}
