// SPDX-License-Identifier: Apache-2.0

package snapshots

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/internal/bundle"
	"github.com/coracle-k8s/coracle/internal/level"
	"github.com/coracle-k8s/coracle/internal/slots"
	"github.com/coracle-k8s/coracle/joining/token"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/server/datadir"
	"github.com/coracle-k8s/coracle/server/pki"
	"github.com/coracle-k8s/coracle/server/storefiles"
)

// Target is the machine on which a snapshot is restored. Its server must not run, and need not exist.
type Target struct {
	// DataDir is named in messages. It contains ServerDir.
	DataDir, ServerDir string
	// Version is the version of this program.
	Version string
	// Required and Optional are the files that all servers have in common, by their path below ServerDir.
	Required, Optional []string
	// Newer are files below ServerDir that are kept instead of the snapshot's, if the server on this machine was of the
	// same cluster and has all of them. Otherwise tokens that were replaced since would be valid again.
	Newer []string
	// Mark, when set, is written into the new folder (datadir.NoteReset).
	Mark string
	Now  func() time.Time
}

// Restored describes what Restore has done.
type Restored struct {
	Header
	// Kept is the folder with the former server, empty if there was none.
	Kept string `json:"kept,omitempty"`
	// KeptNewer says that Target.Newer were kept.
	KeptNewer bool `json:"keptNewer,omitempty"`
}

// CheckedHeader returns a file's header after it has checked that the file is undamaged.
func CheckedHeader(path string) (Header, error) {
	f, size, err := openFile(path)
	if err != nil {
		return Header{}, err
	}
	defer f.Close()
	h, err := checkSum(f, size)
	if err != nil {
		return h, restoreError(path, err)
	}
	return h, nil
}

func restoreError(path string, err error) error {
	return fmt.Errorf("%s cannot be restored: %w. Nothing was changed", path, err)
}

func openFile(path string) (*os.File, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, fmt.Errorf("reading the snapshot: %w", err)
	}
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return nil, 0, errors.Join(restoreError(path, errors.New("it is no file")), err, f.Close())
	}
	return f, info.Size(), nil
}

// Restore makes the server's folder from a snapshot. All data is read, decrypted, checked and written beside the folder
// before it replaces the folder. The former folder is kept under another name.
func Restore(t Target, path string, key Key) (out Restored, err error) {
	if out.Header, err = CheckedHeader(path); err != nil {
		return out, err
	}
	dir, err := datadir.Open(datadir.Options{DataDir: t.DataDir, ServerDir: t.ServerDir, StoreDir: filepath.Join(t.ServerDir, "store"),
		Version: t.Version, Replace: true})
	if inUse, ok := errors.AsType[*datadir.InUseError](err); ok {
		return out, fmt.Errorf("the server runs%s. Nothing was changed. Stop it first: systemctl stop coracle, or end the process",
			inUse.By())
	}
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	now := formatStamp(t.Now())
	if err := storefiles.Tidy(t.ServerDir); err != nil {
		return out, err
	}
	made, err := storefiles.Begin(t.ServerDir, now)
	if err != nil {
		return out, err
	}
	contents, err := t.build(made, path, key)
	if err != nil {
		return out, errors.Join(restoreError(path, err), storefiles.Abandon(made))
	}
	if out.KeptNewer, err = t.keepNewer(made); err != nil {
		return out, errors.Join(restoreError(path, err), storefiles.Abandon(made))
	}
	if contents.Accepted != nil && contents.Accepted.Counter > 0 { // a machine that has taken more keeps that
		if err := t.keepAccepted(*contents.Accepted); err != nil {
			return out, errors.Join(restoreError(path, err), storefiles.Abandon(made))
		}
	}
	kept, err := storefiles.Replace(t.ServerDir, made, t.ServerDir+".before-"+now)
	if err != nil {
		return out, err
	}
	if out.Kept = kept; onlyLock(kept) {
		out.Kept = ""
		return out, os.RemoveAll(kept)
	}
	return out, nil
}

// keepAccepted adds which bundles the cluster has taken to the record of this machine, where no older one is taken
// then.
func (t *Target) keepAccepted(more bundle.Accepted) error {
	v := slots.Below(t.DataDir)
	unlock, err := v.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	return bundle.KeepAccepted(v, more)
}

// keepNewer copies Newer from the present folder, if it may (Target.Newer), and authorities' certificates that were
// renewed since the snapshot.
func (t *Target) keepNewer(made string) (bool, error) {
	here, err := pki.ReadRoot(filepath.Join(t.ServerDir, "tls"))
	if err != nil {
		return false, nil // there was no server here
	}
	if of, err := pki.ReadRoot(filepath.Join(made, "tls")); err != nil || !here.Equal(of) {
		return false, err
	}
	if err := pki.KeepRenewed(filepath.Join(t.ServerDir, "tls"), filepath.Join(made, "tls")); err != nil || len(t.Newer) == 0 {
		return false, err
	}
	files := map[string][]byte{}
	for _, name := range t.Newer {
		data, err := os.ReadFile(filepath.Join(t.ServerDir, name))
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil // the files were never replaced
		}
		if err != nil {
			return false, err
		}
		files[name] = data
	}
	for _, name := range t.Newer {
		if err := atomicfile.Write(filepath.Join(made, name), files[name], 0o600); err != nil {
			return false, err
		}
	}
	return true, nil
}

// onlyLock says whether a folder has nothing but Restore's lock.
func onlyLock(dir string) bool {
	entries, err := os.ReadDir(dir)
	return err == nil && !slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() != datadir.LockFile })
}

// build writes a server's folder at made.
func (t *Target) build(made, path string, key Key) (contents Contents, err error) {
	f, size, err := openFile(path)
	if err != nil {
		return contents, err
	}
	defer f.Close()
	h, contents, state, err := open(f, size, key)
	if err != nil {
		return contents, err
	}
	return contents, t.write(made, h, contents, state)
}

// write writes a server's folder at made from what a snapshot has.
func (t *Target) write(made string, h Header, contents Contents, state io.Reader) error {
	if err := os.Mkdir(made, 0o700); err != nil {
		return err
	}
	if err := t.writeFiles(made, contents.Files); err != nil {
		return err
	}
	if t.Mark != "" {
		if err := datadir.NoteReset(made, t.Mark); err != nil {
			return err
		}
	}
	keys, err := pki.Open(pki.Options{Dir: filepath.Join(made, "tls"), Established: true, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	if cluster := token.Hash(keys.Root()); cluster != h.Cluster {
		return fmt.Errorf("%w: its authority is %.12s… and its header says %.12s…", ErrDamaged, cluster, h.Cluster)
	}
	store := filepath.Join(made, "store")
	id, err := t.identify(made, store, max(h.Level, level.First))
	if err != nil {
		return err
	}
	return writeStore(store, id, h, state, storefiles.Seen(filepath.Join(t.ServerDir, "store"), h.Cluster))
}

// writeFiles writes the files that all servers have in common.
func (t *Target) writeFiles(made string, files map[string][]byte) error {
	for _, name := range t.Required {
		if len(files[name]) == 0 {
			return fmt.Errorf("it lacks %s", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if !slices.Contains(t.Required, name) && !slices.Contains(t.Optional, name) {
			return fmt.Errorf("it has a file that this version of coracle does not know: %q", name)
		}
		to := filepath.Join(made, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
			return err
		}
		if err := atomicfile.Write(to, files[name], 0o600); err != nil {
			return err
		}
	}
	return nil
}

// identify gives the new folder the identity of the former server, or a new one if there was none, and the level of the
// snapshot's cluster.
func (t *Target) identify(made, store string, at int) (id string, err error) {
	if id, err := os.ReadFile(filepath.Join(t.ServerDir, datadir.IdentityFile)); err == nil {
		if err := atomicfile.Write(filepath.Join(made, datadir.IdentityFile), id, 0o600); err != nil {
			return "", err
		}
	}
	d, err := datadir.Open(datadir.Options{DataDir: t.DataDir, ServerDir: made, StoreDir: store, Version: t.Version, Replace: true,
		Level: at})
	if err != nil {
		return "", err
	}
	return d.ServerID(), errors.Join(d.RecordVersion(), d.Close())
}

// writeStore writes the store and checks it by reading all of it.
func writeStore(store, id string, h Header, state io.Reader, seen int64) error {
	if err := raftstore.Restore(raftstore.Options{Dir: store, ClusterID: h.Cluster, NodeID: id, Logger: slog.New(slog.DiscardHandler)},
		state, seen); err != nil {
		return err
	}
	// The state has its own end mark. Only at the end of the file is it certain that nothing was changed or cut off.
	if n, err := io.Copy(io.Discard, state); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	} else if n > 0 {
		return fmt.Errorf("%w: it goes on after the state's end", ErrDamaged)
	}
	checked, err := storefiles.CheckStore(store)
	if err == nil && (checked.Keys != h.Keys || checked.Revision <= h.Revision) {
		err = fmt.Errorf("%w: the store made of it has %d keys at revision %d, and the snapshot %d at %d", ErrDamaged, checked.Keys,
			checked.Revision, h.Keys, h.Revision)
	}
	return err
}
