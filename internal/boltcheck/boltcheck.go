// SPDX-License-Identifier: Apache-2.0

// Package boltcheck reads a bbolt file page by page before bbolt opens it.
//
// The library bbolt maps its file into memory and trusts it: a page number out of range, a truncated file or a wrong
// list of free pages ends the process with SIGBUS or a panic, which no caller can be sure to catch. The package checks
// each page that bbolt would reach and the list of free pages. It only reads, and does not know what the file is for.
package boltcheck

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"os"
)

// The layout is that of bbolt's file format version 2. Numbers are little endian on every machine that we build for.
const (
	magic        = 0xED0CDAED
	version      = 2
	pageHeader   = 16
	elementSize  = 16
	bucketHeader = 16
	metaSize     = 64
	minPage      = 512
	maxPage      = 64 << 10
	maxDepth     = 64
	noFreelist   = ^uint64(0)

	freeID       = 8      // bytes of an entry of the list of free pages
	countFollows = 0xFFFF // the list's first entry is its length

	flagBranch   = 0x01
	flagLeaf     = 0x02
	flagMeta     = 0x04
	flagFreelist = 0x10
)

type metaPage struct {
	pageSize int64
	root     uint64
	freelist uint64
	pages    uint64 // page numbers below this one may be in use
	txid     uint64
}

// checker walks one file. Its work is bounded by the file's length, since
// no page may be reached twice.
type checker struct {
	path    string
	f       *os.File
	meta    metaPage
	reached []uint64 // a bit for each page
	buf     []byte
}

// An Error says that a file is no sound bbolt file. Other errors of Check are the kernel's, and say nothing about the
// file's content.
type Error struct {
	Path   string // the file
	Detail string // what is wrong with it, with the page where there is one
}

func (e *Error) Error() string { return e.Path + " is damaged: " + e.Detail }

func damagedError(path, format string, args ...any) error {
	return &Error{Path: path, Detail: fmt.Sprintf(format, args...)}
}

// Check verifies that bbolt can open, read and write the file without a panic, and that no write is lost. It returns an
// *Error for a damaged file.
func Check(path string) error { return check(path, false) }

// CheckUsable is as Check, but allows that one of the two header pages is damaged, as by a power cut amid its write.
// bbolt uses the other one then, without an error and without the last write.
func CheckUsable(path string) error { return check(path, true) }

func check(path string, fallback bool) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("stat %s: %w", path, err)
	}
	c := &checker{path: path, f: f}
	if c.meta, err = c.newestMeta(info.Size(), fallback); err != nil {
		return err
	}
	if c.meta.pages < 3 || c.meta.pages > uint64(info.Size()/c.meta.pageSize) {
		return damagedError(path, "it is %d bytes long, too short for the %d pages of %d bytes that it should have: it was truncated",
			info.Size(), c.meta.pages, c.meta.pageSize)
	}
	c.reached = make([]uint64, c.meta.pages/64+1)
	free, err := c.freelist()
	if err == nil {
		err = c.tree(c.meta.root, bounds{}, 0)
	}
	if err != nil {
		return err
	}
	for _, id := range free {
		if err := c.markPage(id); err != nil {
			return err
		}
	}
	return nil
}

// freelist reads the list of free pages, if the file has one. A page that is in use too, or twice in the list, makes
// bbolt panic at a later write.
func (c *checker) freelist() ([]uint64, error) {
	if c.meta.freelist == noFreelist {
		return nil, nil
	}
	p, err := c.page(c.meta.freelist, flagFreelist)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	ids, count := p[pageHeader:], uint64(le.Uint16(p[10:]))
	if count == countFollows && len(ids) >= freeID {
		count, ids = le.Uint64(ids), ids[freeID:]
	}
	if count > uint64(len(ids)/freeID) {
		return nil, damagedError(c.path, "page %d claims to list %d free pages", c.meta.freelist, count)
	}
	free := make([]uint64, count)
	for i := range free {
		free[i] = le.Uint64(ids[i*freeID:])
		if free[i] < 2 || free[i] >= c.meta.pages {
			return nil, damagedError(c.path, "page %d lists page %d as free, which does not exist", c.meta.freelist, free[i])
		}
	}
	return free, nil
}

// markPage notes that a page was reached.
func (c *checker) markPage(id uint64) error {
	if c.reached[id/64]&(1<<(id%64)) != 0 {
		return damagedError(c.path, "page %d is used twice", id)
	}
	c.reached[id/64] |= 1 << (id % 64)
	return nil
}

// newestMeta reads both header pages, which bbolt writes in turn, and returns the newer one. If one is damaged, it
// returns the other one with fallback, and an error without.
func (c *checker) newestMeta(size int64, fallback bool) (metaPage, error) {
	m0, err := c.readMeta(0, 0, size)
	if err != nil && !fallback {
		return metaPage{}, err
	}
	if err != nil { // bbolt looks for the other one in the same way
		for at := int64(minPage); at <= maxPage; at *= 2 {
			if m, err1 := c.readMeta(1, at, size); err1 == nil && m.pageSize == at {
				return m, nil
			}
		}
		return metaPage{}, err
	}
	switch m1, err := c.readMeta(1, m0.pageSize, size); {
	case err != nil && fallback:
		return m0, nil
	case err != nil:
		return metaPage{}, err
	case m1.pageSize != m0.pageSize:
		return metaPage{}, damagedError(c.path, "its two header pages disagree")
	case m1.txid > m0.txid:
		return m1, nil
	}
	return m0, nil
}

// readMeta reads a header page at its place in the file, which has the given size.
func (c *checker) readMeta(id uint64, at, size int64) (metaPage, error) {
	var p [pageHeader + metaSize]byte
	if size < at+int64(len(p)) {
		return metaPage{}, damagedError(c.path, "it is only %d bytes long", size)
	}
	if _, err := c.f.ReadAt(p[:], at); err != nil {
		return metaPage{}, fmt.Errorf("read header page %d of %s: %w", id, c.path, err)
	}
	return c.parseMeta(p[:], id)
}

func (c *checker) parseMeta(p []byte, id uint64) (metaPage, error) {
	m := p[pageHeader:]
	sum := fnv.New64a()
	sum.Write(m[:56])
	le := binary.LittleEndian
	switch {
	case le.Uint32(m) != magic, le.Uint32(m[4:]) != version,
		le.Uint64(m[56:]) != sum.Sum64(), le.Uint64(p) != id, le.Uint16(p[8:]) != flagMeta:
		return metaPage{}, damagedError(c.path, "header page %d has a wrong checksum", id)
	}
	meta := metaPage{
		pageSize: int64(le.Uint32(m[8:])), root: le.Uint64(m[16:]),
		freelist: le.Uint64(m[32:]), pages: le.Uint64(m[40:]), txid: le.Uint64(m[48:]),
	}
	if meta.pageSize < minPage || meta.pageSize > maxPage || meta.pageSize&(meta.pageSize-1) != 0 {
		return metaPage{}, damagedError(c.path, "header page %d gives a page size of %d", id, meta.pageSize)
	}
	return meta, nil
}

// page reads a page with its overflow pages. It refuses a page that was reached before, or whose kind is none of kinds.
func (c *checker) page(id uint64, kinds uint16) ([]byte, error) {
	if id < 2 || id >= c.meta.pages {
		return nil, damagedError(c.path, "it refers to page %d, which does not exist", id)
	}
	var h [pageHeader]byte
	if _, err := c.f.ReadAt(h[:], int64(id)*c.meta.pageSize); err != nil {
		return nil, fmt.Errorf("read page %d of %s: %w", id, c.path, err)
	}
	le := binary.LittleEndian
	flags, overflow := le.Uint16(h[8:]), uint64(le.Uint32(h[12:]))
	if le.Uint64(h[:]) != id || flags&kinds == 0 || flags&^kinds != 0 || flags&(flags-1) != 0 {
		return nil, damagedError(c.path, "page %d does not have the header it should", id)
	}
	if overflow >= c.meta.pages-id {
		return nil, damagedError(c.path, "page %d claims to reach beyond the end of the file", id)
	}
	for n := id; n <= id+overflow; n++ {
		if err := c.markPage(n); err != nil {
			return nil, err
		}
	}
	size := int64(overflow+1) * c.meta.pageSize
	if int64(cap(c.buf)) < size {
		c.buf = make([]byte, size)
	}
	p := c.buf[:size]
	if _, err := c.f.ReadAt(p, int64(id)*c.meta.pageSize); err != nil {
		return nil, fmt.Errorf("read page %d of %s: %w", id, c.path, err)
	}
	return p, nil
}

// bounds limit the keys of a page: its first key, and a key that comes after all of its keys. Each is nil if there is
// none. bbolt finds a page in the page above it by its first key. If that has another key, bbolt frees the page twice.
type bounds struct{ first, high []byte }

func (b bounds) allow(i int, key, last []byte) bool {
	if i == 0 {
		return b.first == nil || bytes.Equal(key, b.first)
	}
	return bytes.Compare(key, last) > 0
}

// child is a reference from a page: to another page of its tree, or to a bucket.
type child struct {
	page   uint64
	bounds bounds
}

func (c *checker) tree(id uint64, b bounds, depth int) error {
	if depth > maxDepth {
		return damagedError(c.path, "its pages are nested too deeply")
	}
	p, err := c.page(id, flagBranch|flagLeaf)
	if err != nil {
		return err
	}
	// The buffer is used again below, so the children are collected first.
	children, err := c.elements(p, id, b)
	if err != nil {
		return err
	}
	for _, ch := range children {
		if err := c.tree(ch.page, ch.bounds, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// elements checks a branch or leaf page and returns its references.
func (c *checker) elements(p []byte, id uint64, b bounds) ([]child, error) {
	le := binary.LittleEndian
	leaf := le.Uint16(p[8:]) == flagLeaf
	count := int(le.Uint16(p[10:]))
	if pageHeader+count*elementSize > len(p) || count == 0 && (!leaf || b.first != nil) {
		return nil, damagedError(c.path, "page %d claims %d elements", id, count)
	}
	var children []child
	var last []byte
	for i := range count {
		at := pageHeader + i*elementSize
		e := p[at : at+elementSize]
		pos, ksize, vsize := uint64(le.Uint32(e)), uint64(le.Uint32(e[4:])), uint64(0)
		if leaf {
			pos, ksize, vsize = uint64(le.Uint32(e[4:])), uint64(le.Uint32(e[8:])), uint64(le.Uint32(e[12:]))
		}
		start := uint64(at) + pos
		if start+ksize+vsize > uint64(len(p)) {
			return nil, damagedError(c.path, "element %d of page %d lies outside the page", i, id)
		}
		key := p[start : start+ksize]
		if ksize == 0 {
			return nil, damagedError(c.path, "element %d of page %d has no key", i, id)
		}
		if !b.allow(i, key, last) || b.high != nil && bytes.Compare(key, b.high) >= 0 {
			return nil, damagedError(c.path, "element %d of page %d is out of order", i, id)
		}
		last = key
		switch {
		case !leaf:
			first := bytes.Clone(key)
			if i > 0 {
				children[i-1].bounds.high = first
			}
			children = append(children, child{page: le.Uint64(e[8:]), bounds: bounds{first: first, high: b.high}})
		case le.Uint32(e)&1 != 0:
			more, err := c.bucket(p[start+ksize:start+ksize+vsize], id)
			if err != nil {
				return nil, err
			}
			children = append(children, more...)
		}
	}
	return children, nil
}

// bucket checks a bucket's header, which is a leaf element's value. A small
// bucket follows its header as an inline page.
func (c *checker) bucket(v []byte, id uint64) ([]child, error) {
	if len(v) < bucketHeader {
		return nil, damagedError(c.path, "page %d has a bucket without a header", id)
	}
	if root := binary.LittleEndian.Uint64(v); root != 0 {
		return []child{{page: root}}, nil
	}
	inline := v[bucketHeader:]
	// bbolt takes a number in the page's header for a page of the file, and frees that.
	if len(inline) < pageHeader || binary.LittleEndian.Uint16(inline[8:]) != flagLeaf || binary.LittleEndian.Uint64(inline) != 0 {
		return nil, damagedError(c.path, "page %d has a bucket that cannot be read", id)
	}
	return c.elements(inline, id, bounds{})
}
