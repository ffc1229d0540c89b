// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"os"
)

// The library bbolt maps its file into memory and trusts it: a page number out of range or a truncated file ends the
// process with SIGBUS or a panic. So each page that bbolt would reach is first read and checked here. The layout is
// that of bbolt's file format version 2. Numbers are little endian on every machine that we build for.
const (
	boltMagic      = 0xED0CDAED
	boltVersion    = 2
	boltPageHeader = 16
	boltElement    = 16
	boltBucket     = 16
	boltMetaSize   = 64
	boltMinPage    = 512
	boltMaxPage    = 64 << 10
	boltMaxDepth   = 64
	boltNoFreelist = ^uint64(0)

	boltFlagBranch   = 0x01
	boltFlagLeaf     = 0x02
	boltFlagMeta     = 0x04
	boltFlagFreelist = 0x10
)

type boltMeta struct {
	pageSize int64
	root     uint64
	freelist uint64
	pages    uint64 // page numbers below this one may be in use
	txid     uint64
}

// boltChecker walks one file. Its work is bounded by the file's length, since
// no page may be reached twice.
type boltChecker struct {
	path string
	f    *os.File
	meta boltMeta
	seen []uint64 // a bit for each page
	buf  []byte
}

// checkBolt verifies that bbolt can open and read the file without touching
// anything outside it. It only reads.
func checkBolt(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("stat %s: %w", path, err)
	}
	c := &boltChecker{path: path, f: f}
	if c.meta, err = c.newestMeta(info.Size()); err != nil {
		return err
	}
	if c.meta.pages < 3 || c.meta.pages > uint64(info.Size()/c.meta.pageSize) {
		return damaged(path, "it is %d bytes long, too short for the %d pages of %d bytes that it should have: it was truncated",
			info.Size(), c.meta.pages, c.meta.pageSize)
	}
	c.seen = make([]uint64, c.meta.pages/64+1)
	if c.meta.freelist != boltNoFreelist {
		if _, err := c.page(c.meta.freelist, boltFlagFreelist); err != nil {
			return err
		}
	}
	return c.tree(c.meta.root, bounds{}, 0)
}

// newestMeta reads both header pages, which bbolt writes in turn, and returns the newer one. If one is damaged, bbolt
// would use the other without an error and so lose the last write. newestMeta returns an error then.
func (c *boltChecker) newestMeta(size int64) (boltMeta, error) {
	var first [boltPageHeader + boltMetaSize]byte
	if _, err := c.f.ReadAt(first[:], 0); err != nil {
		return boltMeta{}, damaged(c.path, "it is only %d bytes long", size)
	}
	m0, err := c.parseMeta(first[:], 0)
	if err != nil {
		return boltMeta{}, err
	}
	second := make([]byte, len(first))
	if _, err := c.f.ReadAt(second, m0.pageSize); err != nil {
		return boltMeta{}, damaged(c.path, "it is only %d bytes long", size)
	}
	m1, err := c.parseMeta(second, 1)
	if err != nil {
		return boltMeta{}, err
	}
	if m1.pageSize != m0.pageSize {
		return boltMeta{}, damaged(c.path, "its two header pages disagree")
	}
	if m1.txid > m0.txid {
		return m1, nil
	}
	return m0, nil
}

func (c *boltChecker) parseMeta(p []byte, id uint64) (boltMeta, error) {
	m := p[boltPageHeader:]
	sum := fnv.New64a()
	sum.Write(m[:56])
	le := binary.LittleEndian
	switch {
	case le.Uint32(m) != boltMagic, le.Uint32(m[4:]) != boltVersion,
		le.Uint64(m[56:]) != sum.Sum64(), le.Uint64(p) != id, le.Uint16(p[8:]) != boltFlagMeta:
		return boltMeta{}, damaged(c.path, "header page %d has a wrong checksum", id)
	}
	meta := boltMeta{
		pageSize: int64(le.Uint32(m[8:])), root: le.Uint64(m[16:]),
		freelist: le.Uint64(m[32:]), pages: le.Uint64(m[40:]), txid: le.Uint64(m[48:]),
	}
	if meta.pageSize < boltMinPage || meta.pageSize > boltMaxPage || meta.pageSize&(meta.pageSize-1) != 0 {
		return boltMeta{}, damaged(c.path, "header page %d gives a page size of %d", id, meta.pageSize)
	}
	return meta, nil
}

// page reads a page with its overflow pages. It refuses a page that was reached before, or whose kind is none of kinds.
func (c *boltChecker) page(id uint64, kinds uint16) ([]byte, error) {
	if id < 2 || id >= c.meta.pages {
		return nil, damaged(c.path, "it refers to page %d, which does not exist", id)
	}
	var h [boltPageHeader]byte
	if _, err := c.f.ReadAt(h[:], int64(id)*c.meta.pageSize); err != nil {
		return nil, fmt.Errorf("read page %d of %s: %w", id, c.path, err)
	}
	le := binary.LittleEndian
	flags, overflow := le.Uint16(h[8:]), uint64(le.Uint32(h[12:]))
	if le.Uint64(h[:]) != id || flags&kinds == 0 || flags&^kinds != 0 || flags&(flags-1) != 0 {
		return nil, damaged(c.path, "page %d does not have the header it should", id)
	}
	if overflow >= c.meta.pages-id {
		return nil, damaged(c.path, "page %d claims to reach beyond the end of the file", id)
	}
	for n := id; n <= id+overflow; n++ {
		if c.seen[n/64]&(1<<(n%64)) != 0 {
			return nil, damaged(c.path, "page %d is used twice", n)
		}
		c.seen[n/64] |= 1 << (n % 64)
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

// bounds limit the keys of a page: from low, and before high unless that is nil.
type bounds struct{ low, high []byte }

func (b bounds) contains(key []byte) bool {
	return bytes.Compare(key, b.low) >= 0 && (b.high == nil || bytes.Compare(key, b.high) < 0)
}

// child is a reference from a page: to another page of its tree, or to a bucket.
type child struct {
	page   uint64
	bounds bounds
}

func (c *boltChecker) tree(id uint64, b bounds, depth int) error {
	if depth > boltMaxDepth {
		return damaged(c.path, "its pages are nested too deeply")
	}
	p, err := c.page(id, boltFlagBranch|boltFlagLeaf)
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
func (c *boltChecker) elements(p []byte, id uint64, b bounds) ([]child, error) {
	le := binary.LittleEndian
	leaf := le.Uint16(p[8:]) == boltFlagLeaf
	count := int(le.Uint16(p[10:]))
	if boltPageHeader+count*boltElement > len(p) || !leaf && count == 0 {
		return nil, damaged(c.path, "page %d claims %d elements", id, count)
	}
	var children []child
	var last []byte
	for i := range count {
		at := boltPageHeader + i*boltElement
		e := p[at : at+boltElement]
		pos, ksize, vsize := uint64(le.Uint32(e)), uint64(le.Uint32(e[4:])), uint64(0)
		if leaf {
			pos, ksize, vsize = uint64(le.Uint32(e[4:])), uint64(le.Uint32(e[8:])), uint64(le.Uint32(e[12:]))
		}
		start := uint64(at) + pos
		if start+ksize+vsize > uint64(len(p)) {
			return nil, damaged(c.path, "element %d of page %d lies outside the page", i, id)
		}
		key := p[start : start+ksize]
		if i > 0 && bytes.Compare(key, last) <= 0 || (leaf || i > 0) && !b.contains(key) {
			return nil, damaged(c.path, "element %d of page %d is out of order", i, id)
		}
		last = key
		switch {
		case !leaf:
			low := bytes.Clone(key)
			if i == 0 {
				low = b.low
			} else {
				children[i-1].bounds.high = low
			}
			children = append(children, child{page: le.Uint64(e[8:]), bounds: bounds{low: low, high: b.high}})
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
func (c *boltChecker) bucket(v []byte, id uint64) ([]child, error) {
	if len(v) < boltBucket {
		return nil, damaged(c.path, "page %d has a bucket without a header", id)
	}
	if root := binary.LittleEndian.Uint64(v); root != 0 {
		return []child{{page: root}}, nil
	}
	inline := v[boltBucket:]
	if len(inline) < boltPageHeader || binary.LittleEndian.Uint16(inline[8:]) != boltFlagLeaf {
		return nil, damaged(c.path, "page %d has a bucket that cannot be read", id)
	}
	return c.elements(inline, id, bounds{})
}
