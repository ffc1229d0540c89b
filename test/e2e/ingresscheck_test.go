// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/coracle-k8s/coracle/ingress/check"
	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const migrated = `
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: nginx}
spec: {controller: k8s.io/ingress-nginx}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: migrated, annotations: {nginx.ingress.kubernetes.io/no-such-thing: "on", nginx.ingress.kubernetes.io/limit-rps: "5"}}
spec:
  ingressClassName: nginx
  tls: [{hosts: [shop.example], secretName: missing}]
  rules: [{host: shop.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: web, port: {number: 80}}}}]}}]
`

const events = `{range .items[*]}{.metadata.uid} {.involvedObject.name} {.reason} {.count}{"\n"}{end}`

// TestIngressCheckBeforeAndEventsAfterAMigration: the Ingress of another controller's class is checked by an
// administrator and by a tenant with rights in one namespace. When the class is given to coracle, events say what the
// check did, and a restart of the server records none again.
func TestIngressCheckBeforeAndEventsAfterAMigration(t *testing.T) {
	m := harness.NewMachine(t)
	s := m.NewServer("--disable-agent")
	s.StartAPI()
	k := s.Namespace(t, "shop")
	k.Apply(migrated)

	checks := func(want string, args ...string) check.Report {
		t.Helper()
		out, err := m.Run(m.Coracle(), append([]string{"ingress", "check", "-o", "json"}, args...)...)
		var ended *harness.ExitError
		testenv.Require(t, errors.As(err, &ended) && ended.Err.Error() == "exit status 1", "the check ends with %v\n%s", err, out)
		var r check.Report
		testenv.NoError(t, json.Unmarshal([]byte(out), &r))
		var found []string
		for _, f := range r.Findings {
			found = append(found, string(f.Effect)+" "+strings.TrimPrefix(f.Field, "nginx.ingress.kubernetes.io/"))
		}
		testenv.Equal(t, strings.Join(found, "; "), want, "the findings of %q are", args)
		return r
	}
	r := checks("refused no-such-thing; broken spec.tls; broken spec.rules; different limit-rps", "-A", "--kubeconfig", s.Kubeconfig)
	testenv.True(t, strings.Contains(strings.Join(r.Notes, "\n"), "the IngressClass nginx belongs to k8s.io/ingress-nginx"), "the notes are %q", r.Notes)

	k.Kubectl("create", "serviceaccount", "tenant")
	k.Kubectl("create", "role", "tenant", "--verb=get,list", "--resource=ingresses.networking.k8s.io")
	k.Kubectl("create", "rolebinding", "tenant", "--role=tenant", "--serviceaccount=shop:tenant")
	config := testenv.Must(clientcmd.LoadFromFile(s.Kubeconfig))(t)
	for name := range config.AuthInfos {
		config.AuthInfos[name] = &api.AuthInfo{Token: k.Kubectl("create", "token", "tenant")}
	}
	tenant := filepath.Join(m.Dir, "tenant")
	testenv.NoError(t, clientcmd.WriteToFile(*config, tenant))
	r = checks("refused no-such-thing; different limit-rps", "-n", "shop", "--kubeconfig", tenant)
	testenv.True(t, strings.Contains(strings.Join(r.Notes, "\n"), "Secrets may not be read"), "the notes are %q", r.Notes)

	k.Kubectl("annotate", "ingressclass", "nginx", "coracle.dev/ingress=true")
	k.Prints([]string{"Unsupported 1", "BadCertificate 1", "BadBackend 1"}, "get", "events", "-o", "jsonpath="+events)
	before := k.Kubectl("get", "events", "-o", "jsonpath="+events)
	s.Kill()
	s.StartAPI()
	// An event of another Ingress comes after those that an earlier round would have recorded.
	k.Apply(strings.ReplaceAll(strings.ReplaceAll(migrated, "name: migrated", "name: later"), "shop.example", "later.example"))
	k.Prints([]string{"later Unsupported 1", "later BadCertificate 1", "later BadBackend 1"}, "get", "events", "-o", "jsonpath="+events)
	var after []string
	for line := range strings.SplitSeq(k.Kubectl("get", "events", "-o", "jsonpath="+events), "\n") {
		if !strings.Contains(line, " later ") {
			after = append(after, line)
		}
	}
	testenv.Equal(t, strings.Join(after, "\n"), before, "the events of the first Ingress after a restart:")
}
