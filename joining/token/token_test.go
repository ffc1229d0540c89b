// SPDX-License-Identifier: Apache-2.0

package token

import (
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/coracle-k8s/coracle/test/testenv"
)

var (
	clusterCA = &x509.Certificate{Raw: []byte("our authority")}
	foreignCA = &x509.Certificate{Raw: []byte("another authority")}
)

func TestParseIsTheInverseOfString(t *testing.T) {
	server := testenv.Must(New(clusterCA, RoleServer))(t)
	for _, want := range []Token{
		server,
		{CAHash: Hash(clusterCA), Role: RoleAgent, Secret: "with:colon"},
		{CAHash: Hash(clusterCA), Role: RoleBootstrap, ID: "abcdef", Secret: "0123456789abcdef"},
		{Role: RoleBootstrap, ID: "abcdef", Secret: "0123456789abcdef"},
		{Secret: "plain"},
	} {
		testenv.Equal(t, testenv.Must(Parse(" "+want.String()+"\n"))(t), want, "")
	}
}

func TestParseErrorsNameTheFault(t *testing.T) {
	hash := Hash(clusterCA)
	for in, want := range map[string]string{
		"":                               "empty",
		"CRC1abc::server:x":              "64 hex digits",
		"CRC1" + hash:                    "cut off",
		"CRC1" + hash[:40]:               "cut off",
		"CRC1" + hash + "::":             "what it is for",
		"CRC1" + hash + "::server:":      "empty",
		"CRC1" + hash + "::node:x":       `"node"`,
		"CRC1" + hash + "::server:a b":   "blanks",
		"K10" + hash + "::server:abcdef": "k3s",
	} {
		if _, err := Parse(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want words with %q", in, err, want)
		}
	}
}

func TestForeignAuthorityIsRefused(t *testing.T) {
	tok := testenv.Must(New(clusterCA, RoleAgent))(t)
	testenv.Check(t, tok.VerifyCA(clusterCA))
	testenv.ErrorIs(t, tok.VerifyCA(foreignCA), ErrOtherCluster, "another authority")
}

func ensure(t *testing.T, o Options) Set {
	t.Helper()
	o.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	return testenv.Must(Ensure(o))(t)
}

func TestTokensAreMadeOnceAndKept(t *testing.T) {
	dir := t.TempDir()
	first := ensure(t, Options{Dir: dir, Root: clusterCA})
	if first.Server.Secret == first.Agent.Secret || first.Server.Role != RoleServer || first.Agent.Role != RoleAgent {
		t.Fatalf("%+v", first)
	}
	for file, want := range map[string]Token{ServerFile: first.Server, AgentFile: first.Agent, NodeFile: first.Agent} {
		path := filepath.Join(dir, file)
		testenv.Equal(t, string(testenv.Must(os.ReadFile(path))(t)), want.String()+"\n", "%s holds", file)
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", file, fi.Mode(), err)
		}
	}
	if again := ensure(t, Options{Dir: dir, Root: clusterCA}); !reflect.DeepEqual(again, first) {
		t.Errorf("a second start has %+v, the first had %+v", again, first)
	}
	chosen := ensure(t, Options{Dir: dir, Root: clusterCA, Server: "sesame", Agent: "CRC1" + Hash(clusterCA) + "::agent:open"})
	if chosen.Server.Secret != "sesame" || chosen.Agent.Secret != "open" || chosen.Server.CAHash != Hash(clusterCA) {
		t.Errorf("chosen tokens became %+v", chosen)
	}
	if kept := ensure(t, Options{Dir: dir, Root: clusterCA}); !reflect.DeepEqual(kept, chosen) {
		t.Errorf("chosen tokens were not kept: %+v", kept)
	}
}

func TestUnsuitableTokensAreRefused(t *testing.T) {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	for want, o := range map[string]Options{
		"same":       {Server: "x", Agent: "x"},
		"another":    {Server: "CRC1" + Hash(foreignCA) + "::server:x"},
		"for the ro": {Server: "CRC1" + Hash(clusterCA) + "::agent:x"},
		"expires":    {Agent: "abcdef.0123456789abcdef"},
	} {
		o.Dir, o.Root, o.Logger = t.TempDir(), clusterCA, log
		testenv.WantError(t, testenv.Err(Ensure(o)), want)
	}
	dir := t.TempDir()
	testenv.NoError(t, os.WriteFile(filepath.Join(dir, ServerFile), []byte("CRC1zz::"), 0o600))
	testenv.WantError(t, testenv.Err(Ensure(Options{Dir: dir, Root: clusterCA, Logger: log})), "Restore")
}

func TestFilesOfAnotherCluster(t *testing.T) {
	dir := t.TempDir()
	ensure(t, Options{Dir: dir, Root: foreignCA})
	_, err := Ensure(Options{Dir: dir, Root: clusterCA, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if !errors.Is(err, ErrOtherCluster) || !strings.Contains(err.Error(), "mixed") {
		t.Error(err)
	}
}

func TestBootstrapTokensAreListedAndExpire(t *testing.T) {
	ctx, c := t.Context(), fake.NewSimpleClientset()
	now := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	a := testenv.Must(Create(ctx, c, CreateOptions{TTL: time.Hour, Description: "for the barge", Now: now}))(t)
	testenv.Must(Create(ctx, c, CreateOptions{Token: "zzzzzz.0123456789abcdef"}))(t)
	testenv.WantError(t, testenv.Err(Create(ctx, c, CreateOptions{Token: "zzzzzz.0123456789abcdef"})), "exists")
	testenv.Fails(t, testenv.Err(Create(ctx, c, CreateOptions{Token: "wrong"})), "a wrong form was taken")
	list, err := List(ctx, c)
	if err != nil || len(list) != 2 {
		t.Fatalf("%+v, %v", list, err)
	}
	got := list[0]
	if got.ID != a.ID || got.Secret != a.Secret || got.Description != "for the barge" || !got.Expires.Equal(now.Add(time.Hour)) ||
		strings.Join(got.Usages, ",") != "authentication,signing" || got.Groups[0] != NodeGroup {
		t.Errorf("%+v", got)
	}
	if got.Expired(now.Add(time.Hour-1)) || !got.Expired(now.Add(time.Hour)) || list[1].Expired(now.AddDate(99, 0, 0)) {
		t.Error("Expired is wrong")
	}
	testenv.Check(t, Delete(ctx, c, a.Token(Hash(clusterCA)).String()))
	testenv.WantError(t, Delete(ctx, c, a.ID), "no token")
	testenv.Fails(t, Delete(ctx, c, "nonsense"), "nonsense was deleted")
	_, err = c.CoreV1().Secrets("kube-system").Get(ctx, "bootstrap-token-"+a.ID, metav1.GetOptions{})
	if !apierrors.IsNotFound(err) {
		t.Errorf("still there: %v", err)
	}
}
