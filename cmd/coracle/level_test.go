// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/apiserver/pkg/util/compatibility"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	basecompatibility "k8s.io/component-base/compatibility"
	"k8s.io/component-base/featuregate"

	"github.com/coracle-k8s/coracle/agent/kubelet"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/level"
	"github.com/coracle-k8s/coracle/server"
	"github.com/coracle-k8s/coracle/server/admission"
	"github.com/coracle-k8s/coracle/server/roster"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestNewestLevelIsThisKubernetes: the newest level's minor version is that of the Kubernetes that is built in. There
// nothing is emulated, and no level is older than what upstream can emulate.
func TestNewestLevelIsThisKubernetes(t *testing.T) {
	effective := compatibility.DefaultComponentGlobalsRegistry.EffectiveVersionFor(basecompatibility.DefaultKubeComponent)
	before := effective.String()
	testenv.NoError(t, emulate(level.Newest()))
	testenv.Equal(t, effective.String(), before, "at the newest level, the versions are")
	for l := level.Oldest(); l <= level.Newest(); l++ {
		emulated := version.MustParseGeneric(level.Minor(l))
		testenv.False(t, emulated.LessThan(effective.BinaryVersion().WithPatch(0).SubtractMinor(3)), "level %d, %s, is too old for upstream",
			l, emulated)
	}
}

// TestEmulationIsOfEverything: a level of an older minor version sets the versions and the feature gates, and what the
// API server does with its own flags later leaves them as they are. Storage stays compatible with the version before.
func TestEmulationIsOfEverything(t *testing.T) {
	binary := version.MustParse("1.37.0")
	registry := basecompatibility.NewComponentGlobalsRegistry()
	gates := featuregate.NewVersionedFeatureGate(binary)
	testenv.NoError(t, gates.AddVersioned(map[featuregate.Feature]featuregate.VersionedSpecs{
		"Grown": {{Version: version.MustParse("1.36"), PreRelease: featuregate.Alpha},
			{Version: version.MustParse("1.37"), Default: true, PreRelease: featuregate.Beta}},
	}))
	effective := basecompatibility.NewEffectiveVersion(binary, false, version.MustParse("1.34"), version.MustParse("1.34"))
	testenv.NoError(t, registry.Register(basecompatibility.DefaultKubeComponent, effective, gates))
	testenv.True(t, gates.Enabled("Grown"), "the gate is off in the version that turns it on")
	testenv.NoError(t, emulateMinor(registry, "1.36"))
	for _, when := range []string{"after the level was set", "after the API server has set its flags"} {
		testenv.Equal(t, effective.EmulationVersion().String()+" "+effective.MinCompatibilityVersion().String(), "1.36 1.35", "%s it emulates", when)
		testenv.False(t, gates.Enabled("Grown"), "the gate is on %s", when)
		testenv.NoError(t, registry.Set())
	}
	// The kubelet's gates are the same ones.
	all := compatibility.DefaultComponentGlobalsRegistry.FeatureGateFor(basecompatibility.DefaultKubeComponent)
	testenv.True(t, all == featuregate.FeatureGate(utilfeature.DefaultMutableFeatureGate), "the kubelet has gates of its own")
}

// TestGatesAreCheckedAtTheLevel: a gate that this Kubernetes has, and the level's minor version does not have yet, is
// refused by its name, for the API server and for the kubelet.
func TestGatesAreCheckedAtTheLevel(t *testing.T) {
	registry := compatibility.DefaultComponentGlobalsRegistry
	own := registry.EffectiveVersionFor(basecompatibility.DefaultKubeComponent).EmulationVersion()
	check := func(gate string) []error {
		args := []string{"feature-gates=" + gate + "=true"}
		c := &config.Server{}
		c.APIServerArgs = args
		return []error{checkServerArgs(c), kubelet.CheckArgs(args)}
	}
	gates := utilfeature.DefaultMutableFeatureGate.DeepCopy().GetAllVersioned()
	var added []string
	for name, specs := range gates {
		if first := specs[0]; first.Version.EqualTo(own) && !first.LockToDefault && errors.Join(check(string(name))...) == nil {
			added = append(added, string(name))
		}
	}
	testenv.Require(t, len(added) > 0, "Kubernetes %s has no gate of its own", own)
	t.Cleanup(func() { testenv.NoError(t, emulateMinor(registry, own.String())) })
	testenv.NoError(t, emulateMinor(registry, own.SubtractMinor(1).String()))
	for _, gate := range added {
		for i, err := range check(gate) {
			testenv.Require(t, err != nil && strings.Contains(err.Error(), gate), "%s, %d: %v", gate, i, err)
		}
	}
	t.Logf("%d gates; %v", len(added), check(added[0]))
}

// TestLevelOfAServer: that of its folder, that of the cluster which it joins, or the newest one for a new cluster.
func TestLevelOfAServer(t *testing.T) {
	for _, c := range []struct {
		name   string
		folder int // of identity.json
		store  bool
		peers  bool // it knew other servers
		joined *admission.Joined
		want   int
	}{
		{name: "a new cluster", want: level.Newest()},
		{name: "a cluster as old as this program", folder: 5, store: true, want: 5},
		{name: "a first join, of a cluster before there were levels", joined: &admission.Joined{}, want: 1},
		{name: "a first join", joined: &admission.Joined{Level: 3}, want: 3},
		{name: "a join that failed before", folder: 2, joined: &admission.Joined{Level: 3}, want: 3},
		{name: "a member that lost its store after its cluster was raised", folder: 4, peers: true, joined: &admission.Joined{Level: 3}, want: 4},
		{name: "a member whose cluster was raised after it had joined", folder: 4, store: true, joined: &admission.Joined{Level: 3}, want: 4},
	} {
		dir := t.TempDir()
		o := server.Options{}
		o.ServerDir, o.StoreDir = dir, filepath.Join(dir, "store")
		if c.folder > 0 {
			identity := `{"format": ` + strconv.Itoa(c.folder) + `, "serverID": "a"}`
			testenv.NoError(t, os.WriteFile(filepath.Join(dir, "identity.json"), []byte(identity), 0o600))
		}
		if c.peers {
			testenv.NoError(t, os.WriteFile(filepath.Join(dir, roster.PeersFile), []byte(`["10.0.0.1:6443"]`), 0o600))
		}
		if c.store {
			testenv.NoError(t, os.MkdirAll(filepath.Join(o.StoreDir, "log"), 0o700))
		}
		testenv.Equal(t, serverLevel(o, c.joined), c.want, "%s has level", c.name)
	}
}
