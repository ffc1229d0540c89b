// SPDX-License-Identifier: Apache-2.0

package powercut

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// memory is the part of the guest's memory that it shares with its devices.
type memory []region

type region struct {
	base uint64 // the guest's address of data[0]
	data []byte
	mmap []byte // to unmap
}

// at returns n bytes of the guest's memory.
func (m memory) at(address uint64, n uint32) ([]byte, error) {
	for _, r := range m {
		if address >= r.base && address-r.base+uint64(n) <= uint64(len(r.data)) {
			return r.data[address-r.base:][:n:n], nil
		}
	}
	return nil, fmt.Errorf("the guest's driver gave an address outside its memory: %d bytes at %#x", n, address)
}

func (m memory) unmap() error {
	var err error
	for _, r := range m {
		err = errors.Join(err, unix.Munmap(r.mmap))
	}
	return err
}

// ring is a split virtqueue (virtio 1.2, section 2.7): the guest's driver puts
// chains of descriptors into avail, the device puts them into used.
type ring struct {
	memory memory
	size   uint16
	desc   []byte
	avail  []byte
	used   []byte
	taken  uint16 // of avail
	given  uint16 // to used
}

const (
	descriptorSize = 16
	flagNext       = 1
	flagWrite      = 2 // the device writes
	noInterrupt    = 1
)

func newRing(m memory, size uint16, desc, avail, used uint64) (*ring, error) {
	r := &ring{memory: m, size: size}
	var errs [3]error
	r.desc, errs[0] = m.at(desc, uint32(size)*descriptorSize)
	r.avail, errs[1] = m.at(avail, 4+2*uint32(size))
	r.used, errs[2] = m.at(used, 4+8*uint32(size))
	return r, errors.Join(errs[:]...)
}

// head is the flags and the index at the start of avail or used. The other side
// changes or reads it at any moment.
func head(ring []byte) *uint32 { return (*uint32)(unsafe.Pointer(&ring[0])) }

// request is a chain of descriptors.
type request struct {
	id  uint16
	out [][]byte // from the driver
	in  [][]byte // to the driver
}

// take returns every request that waits.
func (r *ring) take() ([]request, error) {
	newest := uint16(atomic.LoadUint32(head(r.avail)) >> 16)
	var all []request
	for ; r.taken != newest; r.taken++ {
		id := binary.LittleEndian.Uint16(r.avail[4+2*(r.taken%r.size):])
		req, err := r.chain(id)
		if err != nil {
			return nil, err
		}
		all = append(all, req)
	}
	return all, nil
}

func (r *ring) chain(id uint16) (request, error) {
	req := request{id: id}
	for i, n := id, uint16(0); ; n++ {
		if i >= r.size || n >= r.size {
			return req, errors.New("the guest's driver gave a chain of descriptors without an end")
		}
		d := r.desc[int(i)*descriptorSize:]
		data, err := r.memory.at(binary.LittleEndian.Uint64(d), binary.LittleEndian.Uint32(d[8:]))
		if err != nil {
			return req, err
		}
		flags := binary.LittleEndian.Uint16(d[12:])
		if flags&flagWrite != 0 {
			req.in = append(req.in, data)
		} else {
			req.out = append(req.out, data)
		}
		if flags&flagNext == 0 {
			return req, nil
		}
		i = binary.LittleEndian.Uint16(d[14:])
	}
}

// give returns a request, of whose memory n bytes were written, to the driver.
func (r *ring) give(req request, n int) {
	at := 4 + 8*int(r.given%r.size)
	binary.LittleEndian.PutUint32(r.used[at:], uint32(req.id))
	binary.LittleEndian.PutUint32(r.used[at+4:], uint32(n))
	r.given++
	atomic.StoreUint32(head(r.used), uint32(r.given)<<16)
}

// interrupts says whether the driver wants to hear of what was given.
func (r *ring) interrupts() bool { return atomic.LoadUint32(head(r.avail))&noInterrupt == 0 }
