// SPDX-License-Identifier: Apache-2.0

package clusterconfig_test

import (
	"encoding/json"
	"net/netip"
	"reflect"
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
	for _, s := range []clusterconfig.Settings{settings(), {PodCIDRs: []netip.Prefix{}, ServiceCIDRs: []netip.Prefix{}}} {
		b := testenv.Must(json.Marshal(s))(t)
		var again clusterconfig.Settings
		if err := json.Unmarshal(b, &again); err != nil || !reflect.DeepEqual(s, again) {
			t.Errorf("%s became %+v, %v", b, again, err)
		}
	}
}
