// SPDX-License-Identifier: Apache-2.0

package snapshots

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	clocktesting "k8s.io/utils/clock/testing"

	"github.com/coracle-k8s/coracle/internal/bundle"
	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/test/testenv"
)

var start = time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)

// machine is a server with a store, as far as snapshots are concerned.
type machine struct {
	*Keeper
	t     *testing.T
	Store *raftstore.Store
	Clock *clocktesting.FakeClock
	Files map[string][]byte
	Token string
	Key   Key

	Accepted *bundle.Accepted
}

var required = []string{
	"tls/server-ca.crt", "tls/server-ca.key", "tls/client-ca.crt", "tls/client-ca.key", "tls/request-header-ca.crt", "tls/request-header-ca.key",
	"tls/peer-ca.crt", "tls/peer-ca.key", "tls/kubelet-ca.crt", "tls/kubelet-ca.key", "tls/service-account.key",
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	dir := t.TempDir()
	keys := testenv.Must(pki.Open(pki.Options{Dir: filepath.Join(dir, "tls"), Logger: slog.New(slog.DiscardHandler)}))(t)
	tok := testenv.Must(token.New(keys.Root(), token.RoleServer))(t)
	cluster := token.Hash(keys.Root())
	store, err := raftstore.Open(t.Context(), raftstore.Options{Dir: filepath.Join(dir, "store"), NodeID: "one", ClusterID: cluster, Logger: slog.New(slog.DiscardHandler)})
	testenv.NoError(t, err)
	t.Cleanup(func() { testenv.Check(t, store.Close(context.Background())) })
	testenv.NoError(t, store.WaitReady(t.Context()))
	m := &machine{t: t, Store: store, Clock: clocktesting.NewFakeClock(start), Files: map[string][]byte{}, Token: tok.String()}
	for _, name := range required {
		m.Files[name], err = os.ReadFile(filepath.Join(dir, name))
		testenv.NoError(t, err)
	}
	m.Key = mustKey(t, m.Token)
	m.Key.work = 8 // for speed; TestClusterIsRestoredOnBlankMachine has the real one
	m.Keeper = NewKeeper(Options{
		Dir: filepath.Join(dir, "snapshots"), Cluster: cluster, Server: "board1", Version: "v1", Retention: DefaultRetention, BeginBackup: store.BeginBackup,
		Contents: func() (Contents, error) { return Contents{Files: m.Files, Accepted: m.Accepted}, nil },
		Key:      func() (Key, error) { return m.Key, nil },
		Clock:    m.Clock, Logger: slog.New(slog.DiscardHandler),
	})
	return m
}

func (m *machine) Put(key, value string) {
	m.t.Helper()
	testenv.Must(m.Store.Client().Put(m.t.Context(), key, value))(m.t)
}

func (m *machine) MustSave() Info {
	m.t.Helper()
	m.Clock.Step(time.Second)
	info := testenv.Must(m.Save(m.t.Context(), ""))(m.t)
	return info
}

func target(t *testing.T) Target {
	data := t.TempDir()
	return Target{DataDir: data, ServerDir: filepath.Join(data, "server"), Version: "v1", Required: required, Now: func() time.Time { return start }}
}

func mustKey(t *testing.T, text string) Key {
	t.Helper()
	return testenv.Must(KeyOfToken(text))(t)
}

// names are what is in a folder.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	testenv.Require(t, err == nil || errors.Is(err, fs.ErrNotExist), "%v", err)
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}
