// SPDX-License-Identifier: Apache-2.0

package boltcheck

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"

	"go.etcd.io/bbolt"

	"github.com/coracle-k8s/coracle/test/testenv"
)

var le = binary.LittleEndian

// sample returns the content of a file with branches, buckets of both kinds and a list of free pages.
func sample(t *testing.T) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "sample.db")
	db := testenv.Must(bbolt.Open(path, 0o600, &bbolt.Options{PageSize: 4096, NoSync: true}))(t)
	for step := range 3 {
		testenv.NoError(t, db.Update(func(tx *bbolt.Tx) error {
			large, err := tx.CreateBucketIfNotExists([]byte("large"))
			if err != nil {
				return err
			}
			small, err := tx.CreateBucketIfNotExists([]byte("small"))
			if err != nil {
				return err
			}
			for i := range 2000 {
				key := fmt.Appendf(nil, "key %04d", i)
				if step == 2 && i < 1000 {
					err = errors.Join(err, large.Delete(key))
				} else {
					err = errors.Join(err, large.Put(key, make([]byte, 50)))
				}
			}
			return errors.Join(err, small.Put([]byte("key"), []byte("value")))
		}))
	}
	testenv.NoError(t, db.Close())
	return testenv.Must(os.ReadFile(path))(t)
}

// pages are the numbers of pages of the sample, by what they are.
type pages struct{ meta, root, freelist, branch, leaf uint64 }

func find(t *testing.T, file []byte) pages {
	t.Helper()
	var p pages
	for id := range uint64(2) { // the newer one is in use
		m := file[id*4096+pageHeader:]
		if p.root == 0 || le.Uint64(m[48:]) > le.Uint64(file[p.meta*4096+pageHeader+48:]) {
			p.meta, p.root, p.freelist = id, le.Uint64(m[16:]), le.Uint64(m[32:])
		}
	}
	root := file[p.root*4096:]
	for i := range int(le.Uint16(root[10:])) { // the leaf elements of the root: one is the large bucket
		at := pageHeader + i*elementSize
		value := at + int(le.Uint32(root[at+4:])+le.Uint32(root[at+8:]))
		if large := le.Uint64(root[value:]); large != 0 {
			p.branch = large
		}
	}
	testenv.True(t, le.Uint16(file[p.branch*4096+8:]) == flagBranch, "the sample has no branch")
	p.leaf = le.Uint64(file[p.branch*4096+pageHeader+8:])
	return p
}

func TestDamageIsFoundBeforeBboltOpensTheFile(t *testing.T) {
	sound := sample(t)
	p := find(t, sound)
	page := func(file []byte, id uint64) []byte { return file[id*4096 : (id+1)*4096] }
	free := func(file []byte) []byte { return page(file, p.freelist)[pageHeader:] }
	testenv.True(t, le.Uint16(page(sound, p.freelist)[10:]) > 10, "the sample has free pages")
	for name, row := range map[string]struct {
		harm func(file []byte) []byte
		want string
	}{
		"sound":                    {func(f []byte) []byte { return f }, ""},
		"empty":                    {func(f []byte) []byte { return nil }, "it is only 0 bytes long"},
		"cut to half":              {func(f []byte) []byte { return f[:len(f)/2] }, "it was truncated"},
		"twelve pages zero":        {func(f []byte) []byte { clear(f[p.root*4096:][:12*4096]); return f }, "does not have the header"},
		"all zero":                 {func(f []byte) []byte { clear(f); return f }, "header page 0"},
		"header page":              {func(f []byte) []byte { page(f, 1)[pageHeader+20] ^= 1; return f }, "header page 1"},
		"wrong page id":            {func(f []byte) []byte { le.PutUint64(page(f, p.leaf), p.leaf+1); return f }, "does not have the header"},
		"an element without a key": {func(f []byte) []byte { le.PutUint32(page(f, p.leaf)[pageHeader+8:], 0); return f }, "has no key"},
		"a first key that its branch does not name": {func(f []byte) []byte {
			b := page(f, p.branch)
			b[pageHeader+le.Uint32(b[pageHeader:])]-- // all keys are still in order
			return f
		}, "out of order"},
		"a leaf of another kind": {func(f []byte) []byte { le.PutUint16(page(f, p.leaf)[8:], flagFreelist); return f },
			"does not have the header"},
		"a cycle": {func(f []byte) []byte { le.PutUint64(page(f, p.branch)[pageHeader+8:], p.branch); return f }, "is used twice"},
		"a reference beyond the end": {func(f []byte) []byte { le.PutUint64(page(f, p.branch)[pageHeader+8:], 1<<40); return f },
			"does not exist"},
		"an overflow beyond the end": {func(f []byte) []byte { le.PutUint32(page(f, p.leaf)[12:], 1<<30); return f }, "beyond the end"},
		"an element outside its page": {func(f []byte) []byte { le.PutUint32(page(f, p.leaf)[pageHeader+4:], 1<<31); return f },
			"outside the page"},
		"free list: zero":               {func(f []byte) []byte { clear(page(f, p.freelist)); return f }, "does not have the header"},
		"free list: longer than a page": {func(f []byte) []byte { le.PutUint16(page(f, p.freelist)[10:], 60000); return f }, "60000 free pages"},
		"free list: an endless length": {func(f []byte) []byte {
			le.PutUint16(page(f, p.freelist)[10:], countFollows)
			le.PutUint64(free(f), 1<<62)
			return f
		}, "free pages"},
		"free list: a header page":   {func(f []byte) []byte { le.PutUint64(free(f), 1); return f }, "does not exist"},
		"free list: a page too far":  {func(f []byte) []byte { le.PutUint64(free(f)[8:], 1<<50); return f }, "does not exist"},
		"free list: a page in use":   {func(f []byte) []byte { le.PutUint64(free(f), p.leaf); return f }, "is used twice"},
		"free list: a page twice":    {func(f []byte) []byte { copy(free(f)[8:16], free(f)); return f }, "is used twice"},
		"free list: the list itself": {func(f []byte) []byte { le.PutUint64(free(f), p.freelist); return f }, "is used twice"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "damaged.db")
			testenv.NoError(t, os.WriteFile(path, row.harm(append([]byte(nil), sound...)), 0o600))
			err := Check(path)
			if row.want == "" {
				testenv.NoError(t, err)
				return
			}
			damage, ok := errors.AsType[*Error](err)
			testenv.True(t, ok && damage.Path == path && strings.Contains(damage.Detail, row.want), "found %v; want %q", err, row.want)
		})
	}
}

// TestRefusalsOfTheKernelAreNoDamage: what cannot be opened may be sound.
func TestRefusalsOfTheKernelAreNoDamage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "link")
	testenv.NoError(t, os.Symlink("link", path)) // ELOOP
	err := Check(path)
	_, damage := errors.AsType[*Error](err)
	testenv.True(t, errors.Is(err, syscall.ELOOP) && !damage, "got %v", err)
}

// TestTornHeaderIsUsable: bbolt uses the other header page where one is damaged, and loses the last write alone.
func TestTornHeaderIsUsable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "torn.db")
	for damaged := range 4 { // a bit for each header page
		file := sample(t)
		for id := range 2 {
			if damaged&(1<<id) != 0 {
				clear(file[id*4096:][:4096])
			}
		}
		testenv.NoError(t, os.WriteFile(path, file, 0o600))
		testenv.Equal(t, Check(path) == nil, damaged == 0, "damaged headers %b: it is sound:", damaged)
		testenv.Equal(t, CheckUsable(path) == nil, damaged != 3, "damaged headers %b: it is usable:", damaged)
		if damaged != 3 {
			testenv.True(t, use(path) == nil, "bbolt panicked")
		}
	}
}

// TestCheckedFileIsSafeForBbolt writes files at chance, none of which is called damaged, and damages them at chance.
// bbolt reads and writes each one that passes the check without a panic.
func TestCheckedFileIsSafeForBbolt(t *testing.T) {
	const files, rounds = 12, 25
	passed, path := 0, filepath.Join(t.TempDir(), "random.db")
	for seed := range uint64(files) { // the same in each run
		r := rand.New(rand.NewPCG(seed, 9))
		testenv.NoError(t, os.RemoveAll(path))
		fill(t, r, path)
		sound := testenv.Must(os.ReadFile(path))(t)
		for range rounds {
			testenv.NoError(t, os.WriteFile(path, harm(r, append([]byte(nil), sound...)), 0o600))
			if CheckUsable(path) != nil {
				continue
			}
			passed++
			if failure := use(path); failure != nil {
				t.Errorf("seed %d: bbolt panicked on a file that had passed the check: %v", seed, failure)
			}
		}
	}
	testenv.True(t, passed > files*rounds/10 && passed < files*rounds*9/10, "%d of %d files passed: the test shows little", passed, files*rounds)
}

// fill writes and deletes keys and buckets at chance, and checks the file now and then. containerd's main file has no
// list of free pages, the snapshotter's has one.
func fill(t *testing.T, r *rand.Rand, path string) {
	t.Helper()
	o := &bbolt.Options{NoSync: true, PageSize: 1024 << r.IntN(3), NoFreelistSync: r.IntN(2) == 0}
	db := testenv.Must(bbolt.Open(path, 0o600, o))(t)
	defer func() { testenv.NoError(t, db.Close()) }()
	for range 2 + r.IntN(12) {
		testenv.NoError(t, db.Update(func(tx *bbolt.Tx) error {
			for range 1 + r.IntN(200) {
				b := testenv.Must(tx.CreateBucketIfNotExists(fmt.Appendf(nil, "b%d", r.IntN(4))))(t)
				for range r.IntN(3) {
					b = testenv.Must(b.CreateBucketIfNotExists(fmt.Appendf(nil, "n%d", r.IntN(3))))(t)
				}
				key := fmt.Appendf(nil, "k%0*d", 1+r.IntN(30), r.IntN(300))
				switch r.IntN(5) {
				case 0, 1, 2:
					testenv.NoError(t, b.Put(key, make([]byte, r.IntN(100)*(1+99*(r.IntN(20)/19)))))
				case 3:
					c, left := b.Cursor(), r.IntN(60)
					for k, v := c.Seek(key); k != nil && left > 0; k, v = c.Next() {
						if left--; v != nil {
							testenv.NoError(t, c.Delete())
						}
					}
				case 4:
					_ = b.DeleteBucket([]byte("n0")) // there may be none
				}
			}
			return nil
		}))
		testenv.NoError(t, Check(path))
	}
}

// harm changes a file at chance: bits, zeros, whole pages that hold another one.
func harm(r *rand.Rand, file []byte) []byte {
	size := int(le.Uint32(file[pageHeader+8:]))
	for range 1 + r.IntN(3) {
		page := r.IntN(len(file)/size) * size
		at := page + r.IntN(16+r.IntN(size-16))
		switch r.IntN(4) {
		case 0:
			file[at] ^= 1 << r.IntN(8)
		case 1:
			clear(file[at:min(len(file), at+r.IntN(64))])
		case 2:
			copy(file[page:page+size], file[r.IntN(len(file)/size)*size:])
		case 3:
			le.PutUint16(file[min(at, len(file)-2):], []uint16{0, 1, countFollows}[r.IntN(3)])
		}
	}
	return file
}

// use reads, writes and deletes with bbolt, and returns what bbolt panicked with.
func use(path string) (failure any) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() { failure = recover() }()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoSync: true})
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	for range 3 {
		_ = db.Update(func(tx *bbolt.Tx) error {
			return tx.ForEach(func(_ []byte, b *bbolt.Bucket) error { useBucket(b); return nil })
		})
	}
	_ = db.Update(func(tx *bbolt.Tx) error { return tx.DeleteBucket([]byte("b0")) }) // there may be none
	return nil
}

// useBucket writes keys, deletes every second one, and does the same in the buckets below.
func useBucket(b *bbolt.Bucket) {
	_ = b.ForEachBucket(func(name []byte) error { useBucket(b.Bucket(name)); return nil })
	for i := range 60 {
		_ = b.Put(fmt.Appendf(nil, "zz%04d", i), make([]byte, 90))
	}
	c, odd := b.Cursor(), false
	for k, v := c.First(); k != nil; k, v = c.Next() {
		if odd = !odd; odd && v != nil {
			_ = c.Delete()
		}
	}
}
