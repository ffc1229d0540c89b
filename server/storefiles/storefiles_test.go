// SPDX-License-Identifier: Apache-2.0

package storefiles_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/coracle-k8s/coracle/server/storefiles"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestDamagedBackupIsNotCopied(t *testing.T) {
	whole := storefiles.Trailed(strings.Repeat("state ", 1000))
	for name, r := range map[string]io.Reader{
		"at once": bytes.NewReader(whole), "byte by byte": iotest.OneByteReader(bytes.NewReader(whole)),
	} {
		var out bytes.Buffer
		if n, err := storefiles.CopyBackup(&out, r); err != nil || n != int64(len(whole)) || !bytes.Equal(out.Bytes(), whole) {
			t.Errorf("%s: %d bytes, %v", name, n, err)
		}
	}
	// Every place where it may end early, and a changed bit anywhere.
	for n := range whole {
		if _, err := storefiles.CopyBackup(io.Discard, bytes.NewReader(whole[:n])); err == nil {
			t.Fatalf("the first %d bytes pass for a whole backup", n)
		}
		changed := bytes.Clone(whole)
		changed[n] ^= 0x10
		if _, err := storefiles.CopyBackup(io.Discard, bytes.NewReader(changed)); err == nil {
			t.Fatalf("a change of byte %d goes unnoticed", n)
		}
	}
}

func TestBrokenStreamLeavesNoBackup(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "backup")
	broken := errors.New("the connection broke")
	testenv.ErrorIs(t, testenv.Err(storefiles.SaveBackup(path, io.MultiReader(strings.NewReader("half"), iotest.ErrReader(broken)))), broken, "a broken stream")
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("a broken stream left %v, %v", left, err)
	}
	whole := storefiles.Trailed("state")
	testenv.Must(storefiles.SaveBackup(path, bytes.NewReader(whole)))(t)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	testenv.Fails(t, testenv.Err(storefiles.SaveBackup(path, bytes.NewReader(storefiles.Trailed("other")))), "it replaced a backup")
	if data, err := os.ReadFile(path); err != nil || !bytes.Equal(data, whole) {
		t.Errorf("the backup changed: %v", err)
	}
	testenv.Equal(t, len(testenv.Must(os.ReadDir(dir))(t)), 1, "there are")
}

func TestForeignFilesAreNamed(t *testing.T) {
	bolt := binary.LittleEndian.AppendUint32(make([]byte, 16), 0xED0CDAED)
	for want, data := range map[string]string{
		"empty": "", "etcd": string(bolt), "SQLite": "SQLite format 3\x00 and more", "compressed": "\x1f\x8b and more",
	} {
		path := filepath.Join(t.TempDir(), "file")
		testenv.NoError(t, os.WriteFile(path, []byte(data), 0o600))
		testenv.WantError(t, testenv.Err(storefiles.CheckBackup(path)), want, "Nothing was changed")
	}
}

func TestReplaceKeepsBoth(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	folder := func(name, content string) {
		t.Helper()
		testenv.NoError(t, errors.Join(os.Mkdir(at(name), 0o700), os.WriteFile(filepath.Join(at(name), "f"), []byte(content), 0o600)))
	}
	holds := func(name, want string) {
		t.Helper()
		testenv.Equal(t, string(testenv.Must(os.ReadFile(filepath.Join(at(name), "f")))(t)), want, "%s holds", name)
	}
	folder("made", "1")
	if kept, err := storefiles.Replace(at("store"), at("made"), at("kept")); err != nil || kept != "" {
		t.Fatalf("without an earlier store: %q, %v", kept, err)
	}
	folder("made", "2")
	if kept, err := storefiles.Replace(at("store"), at("made"), at("kept")); err != nil || kept != at("kept") {
		t.Fatalf("kept %q, %v", kept, err)
	}
	holds("store", "2")
	holds("kept", "1")
	testenv.ErrorIs(t, testenv.Err(os.Stat(at("made"))), fs.ErrNotExist, "made is still there")
}
