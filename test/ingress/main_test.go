//go:build e2e

// SPDX-License-Identifier: Apache-2.0

// Package ingress has the scenarios of the ingress that want more than make e2e has: clients that others have written,
// and a load for minutes.
package ingress

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testca"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestMain(m *testing.M) { harness.Main(m) }

const (
	siteName = "load.example"
	patient  = 5 * time.Minute
)

// site is a Deployment of servers of test/ingress/load behind an Ingress, over HTTP and gRPC. Pods have the program
// from a folder of the machine.
const site = `
{apiVersion: apps/v1, kind: Deployment, metadata: {name: site}, spec: {replicas: %[1]d, strategy: {rollingUpdate: {maxSurge: "100%%", maxUnavailable: 0}},
  selector: {matchLabels: {app: site}}, template: {metadata: {labels: {app: site}}, spec: {
    terminationGracePeriodSeconds: 60, topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: site}}}],
    volumes: [{name: program, hostPath: {path: %[2]s}}],
    containers: [` + harness.BoxYAML + `, command: [/program/load, serve], volumeMounts: [{name: program, mountPath: /program}],
      readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1, timeoutSeconds: 10}, lifecycle: {preStop: {sleep: {seconds: 10}}}}]}}}}
---
{apiVersion: v1, kind: Service, metadata: {name: site}, spec: {selector: {app: site}, ports: [{port: 80, targetPort: 8080}]}}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: site, annotations: {nginx.ingress.kubernetes.io/ssl-redirect: "false"}}
spec:
  tls: [{hosts: [load.example], secretName: site}]
  rules: [{host: load.example, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: site, port: {number: 80}}}}]}}]
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: grpc, annotations: {nginx.ingress.kubernetes.io/backend-protocol: GRPC, nginx.ingress.kubernetes.io/ssl-redirect: "false"}}
spec:
  rules: [{host: load.example, http: {paths: [{path: /grpc.testing.TestService, pathType: Prefix, backend: {service: {name: site, port: {number: 80}}}}]}}]
`

// program builds test/ingress/load, and returns its path, which all machines see.
func program(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ingress-load-") // not t.TempDir: pods see it, too
	testenv.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "load")
	c := exec.Command("go", "build", "-tags", "grpcnotrace", "-ldflags", "-s -w", "-o", path, "github.com/coracle-k8s/coracle/test/ingress/load")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("building the load: %v: %s", err, out)
	}
	testenv.NoError(t, os.Chmod(dir, 0o755))
	return path
}

// certificate makes another certificate of the site's and puts it into its Secret.
func certificate(t *testing.T, s *harness.Server) testca.Files {
	t.Helper()
	ca := testenv.Must(testca.New(t.TempDir()))(t)
	files := testenv.Must(ca.Issue("site", siteName))(t)
	s.Apply(s.Kubectl("create", "secret", "tls", "site", "--cert", files.Cert, "--key", files.Key, "--dry-run=client", "-o", "yaml"))
	return files
}

// outside runs a program in the network outside of the machines.
func outside(s *harness.Server, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	return harness.Output(s.Outside(ctx, name, args...))
}

// serves waits until the site answers over HTTP/2 with a certificate at an address.
func serves(t *testing.T, s *harness.Server, ip string, files testca.Files) {
	t.Helper()
	harness.Eventually(t, patient, "the site answers at "+ip, func() error {
		out, err := outside(s, "curl", "-sS", "--max-time", "20", "--http2", "--cacert", files.CA, "--resolve", siteName+":443:"+ip, "https://"+siteName+"/")
		if err == nil && !strings.HasPrefix(out, "HTTP/1.1 ") {
			err = fmt.Errorf("it says %q", out)
		}
		return err
	})
}
