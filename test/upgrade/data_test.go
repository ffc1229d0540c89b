// SPDX-License-Identifier: Apache-2.0

package upgrade

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/klauspost/compress/s2"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/utils/clock"

	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/raftstore/disk"
	"github.com/coracle-k8s/coracle/raftstore/mvcc"
	"github.com/coracle-k8s/coracle/server/datadir"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/server/secrets"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// level1 is the data directory of a server that make level-data wrote at level 1: its folder, and what was in its
// store before its end (expectedFile). It stays as it is for as long as a version reads that level.
const level1 = "testdata/level1.tar.gz"

// expectedFile has a line for each key of the store: its name, the revision of its newest version and the SHA-256 of
// its value.
const expectedFile = "expected"

// TestDirectoryOfLevelOne: this version opens a directory that an earlier one wrote, reads all of it, and writes no
// other format number and no record of another kind.
func TestDirectoryOfLevelOne(t *testing.T) {
	folder := unpack(t, level1)
	server := filepath.Join(folder, "server")
	before, store := numbers(t, server), filepath.Join(server, "store")
	testenv.Equal(t, before, "IDENTITY format 2, identity.json 1", "formats of the test data:")
	had := formsOf(t, store)

	dir := testenv.Must(datadir.Open(datadir.Options{DataDir: folder, ServerDir: server, StoreDir: store, Version: "v0.0.0-test"}))(t)
	defer func() { testenv.Check(t, dir.Close()) }()
	testenv.NoError(t, dir.RecordVersion())
	s := open(t, store)
	readsAll(t, s, folder)
	readsSecrets(t, s, server, dir.ServerID())
	everyRequest(t, s.Client().Client, "/now/")
	restored := filepath.Join(t.TempDir(), "restored")
	backUp(t, s, restored)
	testenv.NoError(t, s.Close(context.WithoutCancel(t.Context())))
	testenv.Equal(t, numbers(t, server), before, "formats after this version has used the directory:")

	now := formsOf(t, store)
	maps.Copy(now, formsOf(t, restored))
	for _, form := range slices.Sorted(maps.Keys(now)) {
		testenv.True(t, had[form], "this version writes %s at level 1, which is not in the directory", form)
	}
	if t.Failed() {
		t.Logf("the directory has %q", slices.Sorted(maps.Keys(had)))
	}
	readsAll(t, open(t, store), folder) // it is opened again
}

// unpack unpacks a directory into one of the test's.
func unpack(t *testing.T, archive string) string {
	t.Helper()
	folder := t.TempDir()
	packed := testenv.Must(gzip.NewReader(bytes.NewReader(testenv.Must(os.ReadFile(archive))(t))))(t)
	for in := tar.NewReader(packed); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return folder
		}
		testenv.NoError(t, err)
		path := filepath.Join(folder, h.Name)
		switch h.Typeflag {
		case tar.TypeDir:
			testenv.NoError(t, os.MkdirAll(path, 0o700))
		case tar.TypeReg:
			testenv.NoError(t, os.WriteFile(path, testenv.Must(io.ReadAll(in))(t), 0o600))
		case tar.TypeSymlink:
			testenv.NoError(t, os.Symlink(h.Linkname, path))
		default:
			t.Fatalf("%s has %s, which is no file, folder or link", archive, h.Name)
		}
	}
}

// numbers are the format numbers of a server's folder.
func numbers(t testing.TB, server string) string {
	t.Helper()
	store := testenv.Must(os.ReadFile(filepath.Join(server, "store", "IDENTITY")))(t)
	var identity struct {
		Format int `json:"format"`
	}
	testenv.NoError(t, json.Unmarshal(testenv.Must(os.ReadFile(filepath.Join(server, "identity.json")))(t), &identity))
	lines := strings.Split(string(store), "\n")
	return fmt.Sprintf("IDENTITY %s, identity.json %d", lines[min(1, len(lines)-1)], identity.Format)
}

// open opens a store, which the test's end closes unless the test did.
func open(t *testing.T, dir string) *raftstore.Store {
	t.Helper()
	s := testenv.Must(raftstore.Open(t.Context(), raftstore.Options{Dir: dir, Logger: slog.New(slog.DiscardHandler)}))(t)
	t.Cleanup(func() { _ = s.Close(context.Background()) })
	testenv.NoError(t, s.WaitReady(t.Context()))
	return s
}

// readsAll fails the test unless a store has each key that was there before the end of the server.
func readsAll(t *testing.T, s *raftstore.Store, folder string) {
	t.Helper()
	all := testenv.Must(s.Client().KV.Get(t.Context(), "", clientv3.WithPrefix()))(t)
	has := map[string]bool{}
	for _, kv := range all.Kvs {
		has[lineOf(kv)] = true
	}
	expected := string(testenv.Must(os.ReadFile(filepath.Join(folder, expectedFile)))(t))
	testenv.True(t, strings.Count(expected, "\n") > 100, "%d keys are expected: this shows little", strings.Count(expected, "\n"))
	for line := range strings.Lines(expected) {
		testenv.True(t, has[strings.TrimSpace(line)], "the store lacks %s", line)
	}
}

// lineOf is a key's line of expectedFile.
func lineOf(kv *mvccpb.KeyValue) string {
	return fmt.Sprintf("%s %d %x", kv.Key, kv.ModRevision, sha256.Sum256(kv.Value))
}

// readsSecrets fails the test unless the authorities, tokens and encryption keys are read and fit the store.
func readsSecrets(t *testing.T, s *raftstore.Store, server, serverID string) {
	t.Helper()
	folders := secrets.Folders{Server: server, TLS: filepath.Join(server, "tls"), Cred: filepath.Join(server, "cred")}
	quiet := slog.New(slog.DiscardHandler)
	had := testenv.Must(os.ReadFile(filepath.Join(server, "token")))(t)
	p := testenv.Must(pki.Open(pki.Options{Dir: folders.TLS, Established: true, Logger: quiet}))(t)
	tokens := testenv.Must(secrets.NewTokens(secrets.TokenOptions{
		Folders: folders, ServerID: serverID, Root: p.Root(), Clock: clock.RealClock{}, Logger: quiet,
	}))(t)
	testenv.NoError(t, tokens.Open(s.Client().KV))
	generation := testenv.Must(tokens.Pull(t.Context()))(t)
	testenv.True(t, generation > 0, "the tokens of the test data were rotated, and this version does not know it")
	testenv.Equal(t, tokens.Now().Server.String(), strings.TrimSpace(string(had)), "the server token:")
	testenv.Must(secrets.PullEncryptionKeys(t.Context(), s.Client().Client, s.Drain, folders, serverID, quiet))(t)
}

// everyRequest makes each kind of request that a store's log has an entry for, of keys that begin so.
func everyRequest(t testing.TB, c *clientv3.Client, keys string) {
	t.Helper()
	ctx, key := context.Background(), keys+"a"
	put := testenv.Must(c.Put(ctx, key, strings.Repeat("of which half is packed ", 100)))(t)
	lease := testenv.Must(c.Grant(ctx, 3600))(t)
	testenv.Must(c.Put(ctx, keys+"b", "with a lease", clientv3.WithLease(lease.ID)))(t)
	unchanged := clientv3.Compare(clientv3.ModRevision(key), "=", put.Header.Revision)
	testenv.Must(c.Txn(ctx).If(unchanged).Then(clientv3.OpPut(key, "2")).Commit())(t)
	testenv.Must(c.Put(ctx, keys+"c", "deleted"))(t)
	testenv.Must(c.Delete(ctx, keys+"c"))(t)
	revoked := testenv.Must(c.Grant(ctx, 3600))(t)
	testenv.Must(c.Revoke(ctx, revoked.ID))(t)
	testenv.Must(c.Compact(ctx, put.Header.Revision))(t)
}

// backUp restores a backup of a store into another folder, whose store then begins with a snapshot.
func backUp(t *testing.T, s *raftstore.Store, to string) {
	t.Helper()
	var backup bytes.Buffer
	testenv.Must(s.Backup(t.Context(), &backup))(t)
	testenv.NoError(t, raftstore.Restore(raftstore.Options{Dir: to, Logger: slog.New(slog.DiscardHandler)}, &backup, 0))
}

// formsOf are the forms of what is in a closed store: the beginnings of its files, the kinds of entries and of commands
// in its log, and the records of its snapshot.
func formsOf(t *testing.T, dir string) map[string]bool {
	t.Helper()
	forms := map[string]bool{}
	for _, pattern := range []string{"*.segment", "*/*.segment"} {
		for _, path := range testenv.Must(filepath.Glob(filepath.Join(dir, pattern)))(t) {
			forms[fmt.Sprintf("segment %q", testenv.Must(os.ReadFile(path))(t)[:16])] = true
		}
	}
	i := testenv.Must(disk.Inspect(dir))(t)
	defer func() { testenv.Check(t, i.Close()) }()
	for index := i.FirstIndex; index > 0 && index <= i.LastIndex; index++ {
		var entry raft.Log
		testenv.NoError(t, i.Entry(index, &entry))
		forms[fmt.Sprintf("entry %v with extensions %t", entry.Type, len(entry.Extensions) > 0)] = true
		if entry.Type != raft.LogCommand {
			continue
		}
		forms[fmt.Sprintf("entry of format %d", entry.Data[0])] = true
		for _, c := range testenv.Must(mvcc.DecodeEntry(entry.Data))(t) {
			forms[fmt.Sprintf("command %T", c.Request)] = true
			forms[fmt.Sprintf("command with session %t, fence %t", c.Session > 0, c.Fence > 0)] = true
		}
	}
	if i.Snapshot != nil {
		forms[fmt.Sprintf("snapshot of raft's version %d", i.Snapshot.Version)] = true
		state := testenv.Must(i.State())(t)
		recordsOf(t, state, forms)
		testenv.NoError(t, state.Close())
	}
	return forms
}

// recordsOf adds the forms of a snapshot's state: how it begins, and which records it has. It knows what raftstore/mvcc
// wrote at level 1, and fails the test at anything else.
func recordsOf(t *testing.T, state io.Reader, forms map[string]bool) {
	t.Helper()
	data := testenv.Must(io.ReadAll(state))(t)
	forms[fmt.Sprintf("state %q", data[:10])] = true
	plain := testenv.Must(io.ReadAll(s2.NewReader(bytes.NewReader(data))))(t)
	const magic = "coracle mvcc 1\n"
	testenv.Equal(t, string(plain[:len(magic)]), magic, "a state begins with")
	var records []byte
	for blocks := plain[len(magic):]; len(blocks) > 0; {
		size := binary.LittleEndian.Uint32(blocks)
		records, blocks = append(records, blocks[8:8+size]...), blocks[8+size:]
	}
	in := bytes.NewReader(records)
	number := func() uint64 { return testenv.Must(binary.ReadUvarint(in))(t) }
	text := func() { testenv.Must(in.Seek(int64(number()), io.SeekCurrent))(t) }
	// The fields of each record: numbers, and texts with their length before them.
	fields := map[byte]string{0: "nnn", 1: "nn", 2: "ttnnnn", 3: "ttnnnn", 4: "nn", 5: "ntnn", 6: "nt"}
	number() // revision
	number() // compaction
	for in.Len() > 0 {
		kind := testenv.Must(in.ReadByte())(t)
		testenv.Require(t, fields[kind] != "", "a snapshot has a record of kind %d", kind)
		forms[fmt.Sprintf("record of kind %d", kind)] = true
		for _, field := range fields[kind] {
			if field == 't' {
				text()
			} else {
				number()
			}
		}
	}
}
