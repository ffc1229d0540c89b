// SPDX-License-Identifier: Apache-2.0

package token_test

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

	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/test/testenv"
)

var (
	clusterCA = &x509.Certificate{Raw: []byte("our authority")}
	foreignCA = &x509.Certificate{Raw: []byte("another authority")}
)

func TestParseIsTheInverseOfString(t *testing.T) {
	server := testenv.Must(token.New(clusterCA, token.RoleServer))(t)
	for _, want := range []token.Token{
		server,
		{CAHash: token.Hash(clusterCA), Role: token.RoleAgent, Secret: "with:colon"},
		{CAHash: token.Hash(clusterCA), Role: token.RoleBootstrap, ID: "abcdef", Secret: "0123456789abcdef"},
		{Role: token.RoleBootstrap, ID: "abcdef", Secret: "0123456789abcdef"},
		{Secret: "plain"},
	} {
		testenv.Equal(t, testenv.Must(token.Parse(" "+want.String()+"\n"))(t), want, "")
	}
}

func TestParseErrorsNameTheFault(t *testing.T) {
	hash := token.Hash(clusterCA)
	for in, want := range map[string]string{
		"":                               "empty",
		"CRC1abc::server:x":              "64 hex digits",
		"CRC1" + hash:                    "cut off",
		"CRC1" + hash[:40]:               "cut off",
		"CRC1" + hash + "::":             "name its role",
		"CRC1" + hash + "::server:":      "empty",
		"CRC1" + hash + "::node:x":       `"node"`,
		"CRC1" + hash + "::server:a b":   "blanks",
		"pass:word":                      "has no colon",
		":word":                          "has no colon",
		"K10" + hash + "::server:abcdef": "k3s",
	} {
		if _, err := token.Parse(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v; want words with %q", in, err, want)
		}
	}
}

func TestForeignAuthorityIsRefused(t *testing.T) {
	tok := testenv.Must(token.New(clusterCA, token.RoleAgent))(t)
	testenv.Check(t, tok.VerifyCA(clusterCA))
	testenv.ErrorIs(t, tok.VerifyCA(foreignCA), token.ErrOtherCluster, "another authority")
}

func ensure(t *testing.T, o token.Options) token.Set {
	t.Helper()
	o.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	return testenv.Must(token.Ensure(o))(t)
}

func TestTokensAreMadeOnceAndKept(t *testing.T) {
	dir := t.TempDir()
	first := ensure(t, token.Options{Dir: dir, Root: clusterCA})
	testenv.Require(t, first.Server.Secret != first.Agent.Secret && first.Server.Role == token.RoleServer && first.Agent.Role == token.RoleAgent,
		"%+v", first)
	for file, want := range map[string]token.Token{token.ServerFile: first.Server, token.AgentFile: first.Agent,
		token.NodeFile: first.Agent} {
		path := filepath.Join(dir, file)
		testenv.Equal(t, string(testenv.Must(os.ReadFile(path))(t)), want.String()+"\n", "%s holds", file)
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", file, fi.Mode(), err)
		}
	}
	if again := ensure(t, token.Options{Dir: dir, Root: clusterCA}); !reflect.DeepEqual(again, first) {
		t.Errorf("a second start has %+v, the first had %+v", again, first)
	}
	chosen := ensure(t, token.Options{Dir: dir, Root: clusterCA, Server: "sesame", Agent: "CRC1" + token.Hash(clusterCA) + "::agent:open"})
	if chosen.Server.Secret != "sesame" || chosen.Agent.Secret != "open" || chosen.Server.CAHash != token.Hash(clusterCA) {
		t.Errorf("chosen tokens became %+v", chosen)
	}
	if kept := ensure(t, token.Options{Dir: dir, Root: clusterCA}); !reflect.DeepEqual(kept, chosen) {
		t.Errorf("chosen tokens were not kept: %+v", kept)
	}
}

func TestUnsuitableTokensAreRefused(t *testing.T) {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	for want, o := range map[string]token.Options{
		"same":       {Server: "x", Agent: "x"},
		"another":    {Server: "CRC1" + token.Hash(foreignCA) + "::server:x"},
		"for the ro": {Server: "CRC1" + token.Hash(clusterCA) + "::agent:x"},
		"expires":    {Agent: "abcdef.0123456789abcdef"},
	} {
		o.Dir, o.Root, o.Logger = t.TempDir(), clusterCA, log
		testenv.WantError(t, testenv.Err(token.Ensure(o)), want)
	}
	dir := t.TempDir()
	testenv.NoError(t, os.WriteFile(filepath.Join(dir, token.ServerFile), []byte("CRC1zz::"), 0o600))
	testenv.WantError(t, testenv.Err(token.Ensure(token.Options{Dir: dir, Root: clusterCA, Logger: log})), "Restore")
}

func TestFilesOfAnotherCluster(t *testing.T) {
	dir := t.TempDir()
	ensure(t, token.Options{Dir: dir, Root: foreignCA})
	_, err := token.Ensure(token.Options{Dir: dir, Root: clusterCA, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	testenv.False(t, !errors.Is(err, token.ErrOtherCluster) || !strings.Contains(err.Error(), "mixed"), "%v", err)
}

func TestBootstrapTokensAreListedAndExpire(t *testing.T) {
	ctx, c := t.Context(), fake.NewSimpleClientset()
	now := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	a := testenv.Must(token.Create(ctx, c, token.CreateOptions{TTL: time.Hour, Description: "for the barge", Now: now}))(t)
	testenv.Must(token.Create(ctx, c, token.CreateOptions{Token: "zzzzzz.0123456789abcdef"}))(t)
	testenv.WantError(t, testenv.Err(token.Create(ctx, c, token.CreateOptions{Token: "zzzzzz.0123456789abcdef"})), "exists")
	testenv.Fails(t, testenv.Err(token.Create(ctx, c, token.CreateOptions{Token: "wrong"})), "a wrong form was taken")
	list, err := token.List(ctx, c)
	testenv.Require(t, err == nil && len(list) == 2, "%+v, %v", list, err)
	got := list[0]
	if got.ID != a.ID || got.Secret != a.Secret || got.Description != "for the barge" || !got.Expires.Equal(now.Add(time.Hour)) ||
		strings.Join(got.Usages, ",") != "authentication,signing" || got.Groups[0] != token.NodeGroup {
		t.Errorf("%+v", got)
	}
	testenv.True(t, !got.Expired(now.Add(time.Hour-1)) && got.Expired(now.Add(time.Hour)) && !list[1].Expired(now.AddDate(99, 0, 0)),
		"Expired is wrong")
	testenv.Check(t, token.Delete(ctx, c, a.Token(token.Hash(clusterCA)).String()))
	testenv.WantError(t, token.Delete(ctx, c, a.ID), "no token")
	testenv.Fails(t, token.Delete(ctx, c, "nonsense"), "nonsense was deleted")
	_, err = c.CoreV1().Secrets("kube-system").Get(ctx, "bootstrap-token-"+a.ID, metav1.GetOptions{})
	testenv.True(t, apierrors.IsNotFound(err), "still there: %v", err)
}
