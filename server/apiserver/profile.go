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

// ProfileCIS is the profile that takes what the CIS Kubernetes Benchmark wants and what costs users something.
const ProfileCIS = "cis"

// The profile's files. The audit policy leaves out what a cluster at rest writes all the time; docs/hardening.md has
// what that is.
var (
	//go:embed profile/audit.yaml
	cisAudit []byte
	//go:embed profile/admission.yaml
	cisAdmission []byte
)

// profileArgs are the kube-apiserver flags of the profile. They come before the operator's, which count where both name
// one.
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
	if !slices.ContainsFunc(o.ExtraArgs, func(arg string) bool { name, _ := cutArg(arg); return name == "admission-control-config-file" }) {
		args = append(args, "admission-control-config-file="+admission)
		plugins = append(plugins, "EventRateLimit") // which does nothing without a configuration but fail
	}
	plugins = slices.DeleteFunc(plugins, func(plugin string) bool { return namesAmong(o.ExtraArgs, "disable-admission-plugins", plugin) })
	if len(plugins) > 0 {
		args = append(args, "enable-admission-plugins="+strings.Join(plugins, ","))
	}
	return args, nil
}

// namesAmong says whether an argument that lists names has one of them.
func namesAmong(args []string, flag, want string) bool {
	return slices.ContainsFunc(args, func(arg string) bool {
		name, value := cutArg(arg)
		return name == flag && slices.Contains(strings.Split(value, ","), want)
	})
}
