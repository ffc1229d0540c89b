// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	_ "embed"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

// ProfileCIS is the profile with those recommendations of the CIS Kubernetes Benchmark that have a cost for users.
const ProfileCIS = "cis"

// These are the profile's files. The audit policy leaves out the requests that an idle cluster makes all the time.
// docs/hardening.md lists them.
var (
	//go:embed profile/audit.yaml
	cisAudit []byte
	//go:embed profile/admission.yaml
	cisAdmission []byte
)

// profileArgs returns the kube-apiserver flags of the profile. The operator's flags come after them and take
// precedence.
func profileArgs(o Options) ([]string, error) {
	if o.Profile == "" {
		return nil, nil
	}
	policy, admission := filepath.Join(o.ConfigDir, "audit-policy.yaml"), filepath.Join(o.ConfigDir, "admission.yaml")
	for path, data := range map[string][]byte{policy: cisAudit, admission: cisAdmission} {
		if _, err := atomicfile.WriteIfDifferent(path, data, 0o600); err != nil {
			return nil, fmt.Errorf("writing the files of the profile %s: %w", o.Profile, err)
		}
	}
	args := []string{
		"audit-policy-file=" + policy, "audit-log-path=" + o.AuditLog,
		"audit-log-maxage=30", "audit-log-maxbackup=10", "audit-log-maxsize=100", "audit-log-compress=true",
	}
	plugins := []string{"DenyServiceExternalIPs"}
	if !slices.ContainsFunc(o.APIServerArgs, func(arg string) bool {
		name, _ := cutArg(arg)
		return name == "admission-control-config-file"
	}) {
		args = append(args, "admission-control-config-file="+admission)
		plugins = append(plugins, "EventRateLimit") // it does nothing but fail without a configuration
	}
	plugins = slices.DeleteFunc(plugins, func(plugin string) bool {
		return namesAmong(o.APIServerArgs, "disable-admission-plugins", plugin)
	})
	if len(plugins) > 0 {
		args = append(args, "enable-admission-plugins="+strings.Join(plugins, ","))
	}
	return args, nil
}

// namesAmong says whether a flag in args, whose value is a list, lists want.
func namesAmong(args []string, flag, want string) bool {
	return slices.ContainsFunc(args, func(arg string) bool {
		name, value := cutArg(arg)
		return name == flag && slices.Contains(strings.Split(value, ","), want)
	})
}
