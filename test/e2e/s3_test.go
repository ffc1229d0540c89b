//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testca"
	"github.com/coracle-k8s/coracle/test/testenv"
)

const (
	s3Port             = "7070"
	s3Access, s3Secret = "boatswain", "of-the-hold"
)

// objectStore is an S3 server that others have written (versitygw), on a machine of its own.
type objectStore struct {
	t        *testing.T
	endpoint string
	ca       string // file
	objects  string // folder
}

func newObjectStore(t *testing.T, m *harness.Machine) *objectStore {
	t.Helper()
	program := os.Getenv("CORACLE_TEST_S3_SERVER")
	if program == "" {
		testenv.Missing(t, testenv.S3Server, "make s3-test builds one")
	}
	dir := filepath.Join(m.Dir, "s3")
	for _, sub := range []string{"objects/boats", "attributes"} {
		testenv.NoError(t, os.MkdirAll(filepath.Join(dir, sub), 0o755))
	}
	ca := testenv.Must(testca.New(dir))(t)
	files := testenv.Must(ca.Issue("object-store", m.IP))(t)
	o := &objectStore{t: t, endpoint: net.JoinHostPort(m.IP, s3Port), ca: filepath.Join(dir, "ca.crt"), objects: filepath.Join(dir, "objects")}
	ctx, cancel := context.WithCancel(context.Background())
	c := m.Command(ctx, program, "--access", s3Access, "--secret", s3Secret, "--port", o.endpoint, "--cert", files.Cert, "--key", files.Key,
		"posix", "--sidecar", filepath.Join(dir, "attributes"), o.objects)
	log := testenv.Must(os.Create(filepath.Join(dir, "log")))(t)
	defer log.Close()
	c.Stdout, c.Stderr = log, log
	testenv.NoError(t, c.Start())
	done := make(chan struct{})
	go func() { _ = c.Wait(); close(done) }()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	harness.Eventually(t, harness.Soon, "the S3 server answers", func() error {
		c, err := m.Dial(t.Context(), "tcp", o.endpoint)
		if err != nil {
			output, _ := os.ReadFile(log.Name())
			return fmt.Errorf("%w\n%s", err, output)
		}
		return c.Close()
	})
	return o
}

// args are a server's, or of a command that works without one.
func (o *objectStore) args(ca, secret string) []string {
	return []string{
		"--snapshot-s3", "--snapshot-s3-endpoint", o.endpoint, "--snapshot-s3-endpoint-ca", ca, "--snapshot-s3-bucket", "boats", "--snapshot-s3-folder", "home",
		"--snapshot-s3-bucket-lookup-type", "path", "--snapshot-s3-access-key", s3Access, "--snapshot-s3-secret-key", secret,
	}
}

// has fails unless the bucket holds so many objects in the folder.
func (o *objectStore) has(want int) {
	o.t.Helper()
	testenv.Equal(o.t, len(testenv.Must(filepath.Glob(filepath.Join(o.objects, "boats", "home", "*")))(o.t)), want, "the bucket holds")
}

// TestSnapshotsInS3: an S3 server that others have written keeps a cluster's snapshots: they are saved, in several
// parts, listed, pruned and deleted there, and a blank machine becomes the cluster from one of them. With a wrong
// secret key, or an authority that did not sign the S3 server's certificate, the snapshot stays on the machine, and
// what is wrong is said.
func TestSnapshotsInS3(t *testing.T) {
	site := harness.NewSite(t)
	m, at := site.NewMachine(), site.NewMachine()
	o := newObjectStore(t, at)
	s := m.NewServer("--disable-agent")
	base := s.Args
	s.Args = slices.Concat(base, o.args(o.ca, s3Secret))
	s.StartAPI()
	// Nothing that can be compressed: it takes more than one part.
	for i := range 16 {
		file := filepath.Join(s.Dir, "cargo")
		cargo, err := io.ReadAll(io.LimitReader(rand.Reader, 700<<10))
		if err == nil {
			err = os.WriteFile(file, cargo, 0o600)
		}
		testenv.NoError(t, err)
		s.Kubectl("create", "configmap", fmt.Sprintf("cargo-%d", i), "--from-file", file)
	}
	saved := func(name string) string {
		t.Helper()
		snapshot(t, s, "save", "--name", name)
		for line := range strings.Lines(snapshot(t, s, "list")) {
			if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[0], name+"-") && f[1] == "s3://boats/home/"+f[0] {
				return f[0]
			}
		}
		t.Fatalf("%s is not in the bucket:\n%s", name, snapshot(t, s, "list"))
		return ""
	}
	first := saved("first")
	if st, err := os.Stat(filepath.Join(o.objects, "boats", "home", first)); err != nil || st.Size() < 10<<20 {
		t.Errorf("the file in the bucket: %v, %v", st, err)
	}
	o.has(1)
	s.Kubectl("create", "configmap", "later")
	saved("second")
	s.Kubectl("create", "configmap", "latest")
	last := saved("third")
	o.has(3)
	harness.Says(t, snapshot(t, s, "delete", first), first)
	o.has(2)
	snapshot(t, s, "prune", "--name", "second", "--snapshot-retention", "0")
	o.has(1)

	// What is wrong is said, and the snapshot is on this machine.
	other := testenv.Must(testca.New(filepath.Join(s.Dir, "other")))(t)
	testenv.Must(other.Issue("nobody"))(t)
	for _, wrong := range []struct {
		name    string
		args    []string
		message string
	}{
		{"secret", o.args(o.ca, "guessed"), "check the access key"},
		{"authority", o.args(filepath.Join(s.Dir, "other", "ca.crt"), s3Secret), "certificate signed by unknown authority"},
	} {
		testenv.NoError(t, s.Stop())
		s.Args = slices.Concat(base, wrong.args)
		s.StartAPI()
		out, err := s.Run(s.Coracle(), "snapshot", "save", "--name", wrong.name, "--data-dir", s.DataDir)
		testenv.True(t, err != nil && strings.Contains(out+err.Error(), wrong.message),
			"with a wrong %s it says %v\n%s", wrong.name, err, out)
		testenv.Equal(t, len(testenv.Must(filepath.Glob(filepath.Join(s.DataDir, "snapshots", wrong.name+"-*")))(t)), 1, "with a wrong %s there are on this machine:", wrong.name)
		o.has(1)
	}

	token := testenv.Must(s.Run(s.Coracle(), "token", "print", "--server", "--data-dir", s.DataDir))(t)
	testenv.NoError(t, s.Stop())
	blank := site.NewMachine().NewServer("--node-name", s.NodeName(), "--disable-agent")
	restore := func(ca, secret string) (string, error) {
		return blank.Run(blank.Coracle(), append([]string{"snapshot", "restore", last, "--token", strings.TrimSpace(token), "--data-dir", blank.DataDir}, o.args(ca, secret)...)...)
	}
	if out, err := restore(o.ca, "guessed"); err == nil || !strings.Contains(out+err.Error(), "check the access key") {
		t.Errorf("restoring with a wrong secret key says %v\n%s", err, out)
	}
	if out, err := restore(filepath.Join(s.Dir, "other", "ca.crt"), s3Secret); err == nil || !strings.Contains(out+err.Error(), "certificate signed by unknown authority") {
		t.Errorf("restoring with a wrong authority says %v\n%s", err, out)
	}
	if out, err := restore(o.ca, s3Secret); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	blank.StartAPI()
	if out := blank.Kubectl("get", "configmaps", "-o", "name"); strings.Count(out, "configmap/cargo-") != 16 || !strings.Contains(out, "configmap/latest") {
		t.Errorf("the blank machine has\n%s", out)
	}
}
