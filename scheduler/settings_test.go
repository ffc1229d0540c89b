// SPDX-License-Identifier: Apache-2.0

package scheduler

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func file(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "scheduler.yaml")
	testenv.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

func TestConfigurationFileOverridesDefaults(t *testing.T) {
	o := Options{ExtraArgs: []string{"config=" + file(t, `
apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
podMaxBackoffSeconds: 3
profiles:
- schedulerName: default-scheduler
- schedulerName: packed
  pluginConfig:
  - name: NodeResourcesFit
    args: {scoringStrategy: {type: MostAllocated}}
`), "pod-max-in-unschedulable-pods-duration=1m", "kube-api-qps=7"}}
	s, err := o.settings()
	testenv.NoError(t, err)
	testenv.True(t, len(s.config.Profiles) == 2 && s.config.Profiles[1].SchedulerName == "packed",
		"got %d profiles", len(s.config.Profiles))
	if s.config.PodMaxBackoffSeconds != 3 || s.maxUnschedulable != time.Minute || s.qps != 7 {
		t.Errorf("got %d s, %s, %g/s", s.config.PodMaxBackoffSeconds, s.maxUnschedulable, s.qps)
	}
	if s, err = (Options{}).settings(); err != nil || len(s.config.Profiles) != 1 || s.qps >= 0 {
		t.Errorf("without a file: %+v, error %v", s, err)
	}
}

func TestValidateNamesTheMistake(t *testing.T) {
	head := "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n"
	for want, o := range map[string]Options{
		`did you mean "config"?`:       {ExtraArgs: []string{"confg=x"}},
		`"leader-elect" is refused`:    {ExtraArgs: []string{"leader-elect=true"}},
		`"write-config-to" is refused`: {ExtraArgs: []string{"write-config-to=/x"}},
		`no such file`:                 {ExtraArgs: []string{"config=" + filepath.Join(t.TempDir(), "none")}},
		`podBackofff`:                  {ExtraArgs: []string{"config=" + file(t, head+"podBackofff: 3\n")}},
		`percentageOfNodesToScore`:     {ExtraArgs: []string{"config=" + file(t, head+"percentageOfNodesToScore: 300\n")}},
	} {
		testenv.WantError(t, o.Validate(), want)
	}
	for _, arg := range []string{"leader-elect=false", "profiling=false", "bind-address=127.0.0.1"} {
		testenv.Check(t, (Options{ExtraArgs: []string{arg}}).Validate(), "%s asks for what is the case anyway", arg)
	}
}
