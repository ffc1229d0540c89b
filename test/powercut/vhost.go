// SPDX-License-Identifier: Apache-2.0

package powercut

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Messages of the vhost-user protocol, as QEMU's documentation of it has them.
const (
	getFeatures         = 1
	setFeatures         = 2
	setOwner            = 3
	setMemTable         = 5
	setVringNum         = 8
	setVringAddr        = 9
	setVringBase        = 10
	setVringKick        = 12
	setVringCall        = 13
	getProtocolFeatures = 15
	setProtocolFeatures = 16
	setVringEnable      = 18
	setBackendRequests  = 21
	getConfig           = 24

	messageHeader = 12
	segments      = 126 // of memory in one request
	versionFlag   = 1
	replyFlag     = 4
	wantsReply    = 8

	// Features of the device (virtio 1.2, section 5.2.3) and of the protocol.
	featureSegments = 1 << 2
	featureFlush    = 1 << 9
	featureProtocol = 1 << 30
	featureVirtio1  = 1 << 32
	protocolAck     = 1 << 3
	protocolBackend = 1 << 5 // Linux 6.1 has no interrupt without it
	protocolConfig  = 1 << 9
)

// device is a virtio block device with one queue.
type device struct {
	disk *Disk
	conn *net.UnixConn

	memory           memory
	size             uint16
	desc, used, aval uint64
	kick             *os.File
	call, backend    int // descriptors, or -1

	tasks sync.WaitGroup // the queue's
	err   error          // of the queue; readable after tasks
}

// serveDisk is the device for one boot: it answers the guest's kernel until the
// guest is gone.
func serveDisk(conn *net.UnixConn, disk *Disk) error {
	d := &device{disk: disk, conn: conn, call: -1, backend: -1}
	err := d.serve()
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, unix.ECONNRESET) {
		err = nil
	}
	if d.kick != nil {
		err = errors.Join(err, d.kick.Close())
	}
	d.tasks.Wait()
	for _, fd := range []int{d.call, d.backend} {
		if fd >= 0 {
			err = errors.Join(err, unix.Close(fd))
		}
	}
	return errors.Join(err, d.err, d.memory.unmap())
}

func (d *device) serve() error {
	for {
		var header [messageHeader]byte
		oob := make([]byte, unix.CmsgSpace(8*4))
		n, nOOB, _, _, err := d.conn.ReadMsgUnix(header[:], oob)
		if err == nil && n == 0 {
			return io.EOF
		}
		if err == nil {
			_, err = io.ReadFull(d.conn, header[n:])
		}
		if err != nil {
			return err
		}
		fds, err := descriptors(oob[:nOOB])
		if err != nil {
			return err
		}
		kind, flags := binary.LittleEndian.Uint32(header[:]), binary.LittleEndian.Uint32(header[4:])
		payload := make([]byte, binary.LittleEndian.Uint32(header[8:]))
		if _, err := io.ReadFull(d.conn, payload); err != nil {
			return err
		}
		answer, err := d.handle(kind, payload, fds)
		if err != nil {
			return fmt.Errorf("vhost-user message %d: %w", kind, err)
		}
		if answer == nil && flags&wantsReply != 0 {
			answer = make([]byte, 8) // done
		}
		if answer == nil {
			continue
		}
		binary.LittleEndian.PutUint32(header[4:], versionFlag|replyFlag)
		binary.LittleEndian.PutUint32(header[8:], uint32(len(answer)))
		if _, err := d.conn.Write(append(header[:], answer...)); err != nil {
			return err
		}
	}
}

func descriptors(oob []byte) ([]int, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("%d control messages: %w", len(messages), err)
	}
	return unix.ParseUnixRights(&messages[0])
}

// handle answers one message. Those that need no answer are acknowledged.
func (d *device) handle(kind uint32, payload []byte, fds []int) ([]byte, error) {
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(payload[at:]) }
	u64 := func(at int) uint64 { return binary.LittleEndian.Uint64(payload[at:]) }
	switch kind {
	case getFeatures:
		return binary.LittleEndian.AppendUint64(nil, featureSegments|featureFlush|featureProtocol|featureVirtio1), nil
	case getProtocolFeatures:
		return binary.LittleEndian.AppendUint64(nil, protocolAck|protocolBackend|protocolConfig), nil
	case getConfig:
		config := make([]byte, 256)
		binary.LittleEndian.PutUint64(config, uint64(d.disk.Size()/sectorSize))
		binary.LittleEndian.PutUint32(config[12:], segments)
		copy(payload[messageHeader:], config)
		return payload, nil
	case setMemTable:
		return nil, d.setMemory(payload, fds)
	case setVringNum:
		d.size = uint16(u32(4))
	case setVringAddr:
		d.desc, d.used, d.aval = u64(8), u64(16), u64(24)
	case setVringCall:
		if len(fds) == 1 {
			d.call = fds[0]
		}
	case setBackendRequests:
		if len(fds) == 1 {
			d.backend = fds[0]
		}
	case setVringKick:
		if len(fds) != 1 {
			return nil, errors.New("no descriptor")
		}
		if err := unix.SetNonblock(fds[0], true); err != nil {
			return nil, err
		}
		d.kick = os.NewFile(uintptr(fds[0]), "kick")
	case setVringEnable:
		if u32(4) == 1 {
			return nil, d.enable()
		}
	case setOwner, setFeatures, setProtocolFeatures, setVringBase:
	default:
		return nil, errors.New("unknown")
	}
	return nil, nil
}

func (d *device) setMemory(payload []byte, fds []int) error {
	n := binary.LittleEndian.Uint32(payload)
	if int(n) != len(fds) {
		return fmt.Errorf("%d regions and %d descriptors", n, len(fds))
	}
	for i, fd := range fds {
		entry := payload[8+32*i:]
		base, size := binary.LittleEndian.Uint64(entry), binary.LittleEndian.Uint64(entry[8:])
		offset := binary.LittleEndian.Uint64(entry[24:])
		mapped, err := unix.Mmap(fd, 0, int(offset+size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err = errors.Join(err, unix.Close(fd)); err != nil {
			return fmt.Errorf("map the guest's memory: %w", err)
		}
		d.memory = append(d.memory, region{base: base, data: mapped[offset:], mmap: mapped})
	}
	return nil
}

// enable starts the queue.
func (d *device) enable() error {
	r, err := newRing(d.memory, d.size, d.desc, d.aval, d.used)
	if err != nil {
		return err
	}
	d.tasks.Go(func() {
		if d.err = d.runQueue(r); d.err != nil {
			d.disk.CutAfter(0) // the guest would wait for ever
		}
	})
	return nil
}

// runQueue serves requests until the power or the guest is gone.
func (d *device) runQueue(r *ring) error {
	var count [8]byte
	for {
		if _, err := d.kick.Read(count[:]); err != nil {
			return nil // closed
		}
		for {
			waiting, err := r.take()
			if err != nil {
				return err
			}
			if len(waiting) == 0 {
				break
			}
			if done, err := d.serveRequests(r, waiting); done || err != nil {
				return err
			}
		}
	}
}

// serveRequests answers what waits in the queue together. A flush is for what
// was answered before it was asked for; writes that wait beside it are under no
// promise, so they come later and stay in the cache.
func (d *device) serveRequests(r *ring, waiting []request) (noPower bool, err error) {
	for _, flushes := range []bool{true, false} {
		for _, req := range waiting {
			op, err := parseBlock(req)
			if err != nil {
				return false, err
			}
			if (op.kind == blockFlush) != flushes {
				continue
			}
			n, err := op.run(d.disk)
			if errors.Is(err, errNoPower) {
				return true, nil
			}
			if err != nil {
				return false, err
			}
			r.give(req, n)
		}
	}
	if r.interrupts() && d.call >= 0 {
		// The guest reads a pipe; if that is full, it knows already.
		_, err = unix.Write(d.call, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EPIPE) {
			err = nil
		}
	}
	return false, err
}

// Kinds of block requests (virtio 1.2, section 5.2.6).
const (
	blockRead  = 0
	blockWrite = 1
	blockFlush = 4

	blockHeader      = 16
	statusOK         = 0
	statusNotOffered = 2
)

// blockRequest is a request's header, data and place for the status.
type blockRequest struct {
	kind    uint32
	at      int64
	out, in [][]byte
	status  []byte
}

func parseBlock(r request) (*blockRequest, error) {
	if len(r.out) == 0 || len(r.out[0]) != blockHeader || len(r.in) == 0 || len(r.in[len(r.in)-1]) != 1 {
		return nil, errors.New("the guest's driver made a block request of another layout than ours")
	}
	h := r.out[0]
	return &blockRequest{
		kind: binary.LittleEndian.Uint32(h), at: int64(binary.LittleEndian.Uint64(h[8:])) * sectorSize,
		out: r.out[1:], in: r.in[:len(r.in)-1], status: r.in[len(r.in)-1],
	}, nil
}

// run does what is asked for and says how many bytes of memory it wrote.
func (b *blockRequest) run(disk *Disk) (n int, err error) {
	b.status[0] = statusOK
	switch b.kind {
	case blockRead:
		for _, p := range b.in {
			if err := disk.Read(p, b.at+int64(n)); err != nil {
				return 0, err
			}
			n += len(p)
		}
	case blockWrite:
		var data []byte
		for _, p := range b.out {
			data = append(data, p...)
		}
		err = disk.Write(data, b.at)
	case blockFlush:
		err = disk.Flush()
	default:
		b.status[0] = statusNotOffered
	}
	return n + 1, err
}
