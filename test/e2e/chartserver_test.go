//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testca"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const (
	// shopAddress is where the machine's chart server listens: a repository, and a registry.
	shopAddress  = "127.0.0.1:8880"
	shopPassword = "open sesame"
)

// startChartServer runs one with a certificate by an authority that no client knows, whose file it returns, and with a
// password.
func startChartServer(t *testing.T, m *harness.Machine, archives string) (ca string) {
	t.Helper()
	dir := filepath.Join(m.Dir, "shop")
	testenv.NoError(t, os.MkdirAll(dir, 0o755))
	program := filepath.Join(dir, "chartserver")
	build := exec.Command("go", "build", "-tags", "no_btrfs no_zfs no_devmapper grpcnotrace", "-ldflags", "-s -w", "-o", program, "../charts/chartserver")
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the chart server: %v\n%s", err, out)
	}
	files := testenv.Must(testenv.Must(testca.New(dir))(t).Issue("server", "127.0.0.1"))(t)
	ctx, cancel := context.WithCancel(context.Background())
	server := m.Command(ctx, program, "-listen", shopAddress, "-dir", archives, "-user", "me", "-password", shopPassword,
		"-cert", files.Cert, "-key", files.Key)
	log := testenv.Must(os.Create(filepath.Join(dir, "log")))(t)
	defer log.Close() // the program has its own
	server.Stderr = log
	testenv.NoError(t, server.Start())
	t.Cleanup(func() { cancel(); _ = server.Wait() }) // it was killed
	return files.CA
}

// chartsOfPrivateServer come from a repository and from a registry whose authority is not known at first, and whose
// password is wrong then. What a user mends installs them without another word. The registry's release is kept in
// ConfigMaps.
func chartsOfPrivateServer(k *harness.Kube, archive, ca string) {
	k.T.Helper()
	helm := func(args ...string) (string, error) {
		return k.Run(k.Coracle(), append([]string{"helm", "--kubeconfig", k.Kubeconfig}, args...)...)
	}
	harness.Eventually(k.T, soon, "the chart is in the registry", func() error {
		_, err := helm("push", archive, "oci://"+shopAddress+"/charts", "--ca-file", ca, "--username", "me", "--password", shopPassword)
		return err
	})
	authority := testenv.Must(os.ReadFile(ca))(k.T)
	names := []string{"shop", "registry"}
	const (
		fromRepository = "repo: https://" + shopAddress + "\nchart: web\nversion: 1.0.0\nset: {replicas: 0}\nauthSecret: {name: shop-login}\n"
		fromRegistry   = "chart: oci://" + shopAddress + "/charts/web\nversion: 1.0.0\nset: {replicas: 0}\ndriver: configmap\ndockerRegistrySecret: {name: registry-login}\n"
	)
	logins := func(password string) {
		k.T.Helper()
		k.Apply(k.Kubectl("create", "secret", "generic", "shop-login", "--dry-run=client", "-o", "yaml",
			"--type=kubernetes.io/basic-auth", "--from-literal=username=me", "--from-literal=password="+password))
		k.Apply(k.Kubectl("create", "secret", "docker-registry", "registry-login", "--dry-run=client", "-o", "yaml",
			"--docker-server="+shopAddress, "--docker-username=me", "--docker-password="+password))
	}
	becomes := func(reason string, words ...string) {
		k.T.Helper()
		for i, name := range names {
			message := awaitChart(k, name, reason)
			if len(words) > 0 {
				harness.Says(k.T, message, words[i], shopAddress)
			}
		}
	}
	const wrong = "open barley"
	logins(wrong)
	k.Kubectl("create", "configmap", "company", "--from-file=ca.crt="+ca)
	k.Apply(helmChart("shop", fromRepository))
	k.Apply(helmChart("registry", fromRegistry))
	becomes("RepositoryNotTrusted", "repoCA", "repoCA")
	k.Apply(helmChart("shop", fromRepository+"repoCAConfigMap: {name: company}"))
	k.Apply(helmChart("registry", fromRegistry+"repoCA: |\n"+indent(string(authority), 2)))
	becomes("Unauthorized", "authSecret", "dockerRegistrySecret")
	logins(shopPassword)
	becomes("Deployed")

	for _, name := range names {
		k.Await(soon, "configmap/"+name+"-greeting", "{.data.version}", "1.0.0")
		k.Prints([]string{"Warning", "RepositoryNotTrusted", "Unauthorized", "Normal", "Installed"}, "get", "events", "--field-selector=involvedObject.kind=HelmChart,involvedObject.name="+name)
	}
	if out := k.Kubectl("get", "events,helmcharts", "-o", "yaml"); strings.Contains(out, wrong) || strings.Contains(out, shopPassword) {
		k.T.Errorf("a password is in the events or the charts:\n%s", out)
	}
	testenv.Equal(k.T, k.Kubectl("get", "secrets,configmaps", "-l", "owner=helm,name=registry", "-o", "name"), "configmap/sh.helm.release.v1.registry.v1", "the release is kept in")
	var out string
	err := harness.Reaching(func() (err error) {
		out, err = k.Run("/bin/busybox", "env", "HELM_DRIVER=configmap", k.Coracle(), "helm", "--kubeconfig", k.Kubeconfig, "-n", k.NS, "list")
		return err
	})
	testenv.True(k.T, err == nil && strings.Contains(out, "registry") && !strings.Contains(out, "shop"), "a user's helm sees %q, %v", out, err)
	k.Kubectl("delete", "helmchart", "shop", "registry", "--timeout=300s")
	k.Kubectl("delete", "secret", "shop-login", "registry-login")
	testenv.Equal(k.T, k.Kubectl("get", "configmaps", "-l", "owner=helm", "-o", "name"), "", "the charts have left")
}
