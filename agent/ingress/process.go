// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

const (
	// User is the user and the group of the proxy, by number: one that neither Debian nor systemd gives out (uid-gid in systemd's documentation).
	User = 61080
	// answerWithin bounds the wait for the proxy's answer to a change.
	answerWithin = 30 * time.Second
	// memoryLimit is where the proxy's collector begins to work hard.
	memoryLimit = "192MiB"
)

func everything() labels.Selector { return labels.Everything() }

func ofService(name string) labels.Selector {
	return labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: name})
}

// record is what is written of a process, so that the next run finds it.
type record struct {
	PID     int            `json:"pid"`
	Started uint64         `json:"started"` // after the machine's start, in ticks: a pid alone may be another process' by now
	Ports   map[string]int `json:"ports"`
}

// process is the proxy as this run sees it.
type process struct {
	pid    int
	record record
	conn   net.Conn
	out    *json.Encoder
	sent   table.Sections // nil before the first table of this connection
	// problems are those of the last answer.
	problems map[string]string
	answers  chan table.Answer // no room: one is awaited for each change
	ended    chan error        // capacity 1: a connection ends once
	done     chan struct{}     // closed by close
	reading  sync.WaitGroup
}

// start finds the proxy that an earlier run has started, or starts it.
func start(ctx context.Context, o Options) (*process, error) {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the proxy's folder: %w", err)
	}
	if r, err := readRecord(o.Dir); err == nil && r.alive() {
		if p, err := connect(o.Dir, r); err == nil {
			o.Logger.Info("ingress: the proxy of the run before goes on", "pid", r.PID)
			return p, nil
		}
	}
	if err := stop(o.Dir); err != nil {
		return nil, err
	}
	r, err := launch(ctx, o)
	if err != nil {
		return nil, err
	}
	o.Logger.Info("ingress: the proxy was started", "pid", r.PID, "ports", r.Ports)
	return connect(o.Dir, r)
}

func socketIn(dir string) string { return filepath.Join(dir, "control.sock") }
func recordIn(dir string) string { return filepath.Join(dir, "process.json") }

// sockets are what the proxy is started with.
type sockets struct {
	files []*os.File
	names []string
	ports map[string]int
}

func (s *sockets) close() {
	for _, f := range s.files {
		_ = f.Close()
	}
}

// listen opens the sockets: the control socket, and for each of the node's addresses one for HTTP and one for HTTPS. All addresses have the same ports.
func listenAll(o Options) (*sockets, error) {
	s := &sockets{ports: map[string]int{}}
	control, err := net.ListenUnix("unix", &net.UnixAddr{Name: socketIn(o.Dir), Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listening for the proxy's table: %w", err)
	}
	control.SetUnlinkOnClose(false)
	defer control.Close()
	if err := s.add(table.ControlName, control); err != nil {
		return nil, err
	}
	for name, port := range map[string]int{table.HTTP: table.NodeHTTPPort, table.HTTPS: table.NodeHTTPSPort} {
		if err := s.listen(o.NodeIPs, name, port); err == nil {
			continue
		}
		if err := s.listen(o.NodeIPs, name, 0); err != nil { // somebody has the port
			s.close()
			return nil, err
		}
	}
	return s, nil
}

func (s *sockets) listen(at []netip.Addr, name string, port int) error {
	var opened []net.Listener
	defer func() {
		for _, l := range opened {
			_ = l.Close() // the copies stay
		}
	}()
	for _, ip := range at {
		l, err := net.Listen("tcp", netip.AddrPortFrom(ip, uint16(port)).String())
		if err != nil {
			return fmt.Errorf("listening for the ingress: %w", err)
		}
		opened = append(opened, l)
		if tcp, ok := l.Addr().(*net.TCPAddr); ok {
			port = tcp.Port
		}
	}
	for _, l := range opened {
		if err := s.add(table.SiteIngress+"/"+name, l); err != nil {
			return err
		}
	}
	s.ports[name] = port
	return nil
}

func (s *sockets) add(name string, l net.Listener) error {
	f, ok := l.(interface{ File() (*os.File, error) })
	if !ok {
		return errors.New("the socket has no descriptor")
	}
	file, err := f.File()
	if err != nil {
		return fmt.Errorf("taking a socket for the proxy: %w", err)
	}
	s.files, s.names = append(s.files, file), append(s.names, name)
	return nil
}

// launch starts the proxy as its own user, in a session of its own, with nothing open but its sockets and its log.
func launch(ctx context.Context, o Options) (record, error) {
	if err := os.Remove(socketIn(o.Dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return record{}, fmt.Errorf("removing the socket of a proxy that has ended: %w", err)
	}
	s, err := listenAll(o)
	if err != nil {
		return record{}, err
	}
	defer s.close()
	log, err := os.OpenFile(filepath.Join(o.Dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return record{}, fmt.Errorf("opening the proxy's log: %w", err)
	}
	defer log.Close()
	program, err := filepath.EvalSymlinks(o.Program)
	if err != nil {
		return record{}, fmt.Errorf("the ingress proxy is missing: %w", err)
	}
	cmd := exec.Command(program) // not of ctx: it outlives this process
	cmd.Env = []string{table.EnvNames + "=" + strings.Join(s.names, ","), "GOMEMLIMIT=" + memoryLimit}
	cmd.Dir, cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = "/", s.files, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if os.Getuid() == 0 {
		cmd.Env = append(cmd.Env, table.EnvUser+"="+strconv.Itoa(User))
	}
	if err := cmd.Start(); err != nil {
		return record{}, fmt.Errorf("starting the ingress proxy: %w", err)
	}
	r := record{PID: cmd.Process.Pid, Ports: s.ports}
	if r.Started, err = startTime(r.PID); err != nil {
		return record{}, err
	}
	go func() { _ = cmd.Wait() }() // its end is noticed by its connection; this takes it off the list of processes
	text, err := json.Marshal(r)
	if err != nil {
		return record{}, err
	}
	if err := atomicfile.Write(recordIn(o.Dir), text, 0o600); err != nil {
		return record{}, fmt.Errorf("writing the record of the ingress proxy: %w", err)
	}
	return r, ctx.Err()
}

func readRecord(dir string) (record, error) {
	var r record
	text, err := os.ReadFile(recordIn(dir))
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(text, &r)
}

// alive says whether the process of a record runs.
func (r record) alive() bool {
	started, err := startTime(r.PID)
	return err == nil && started == r.Started
}

// startTime is field 22 of /proc/PID/stat: ticks after the machine's start.
func startTime(pid int) (uint64, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text[strings.LastIndexByte(string(text), ')')+1:]), " ")
	fields := strings.Fields(rest)
	if len(fields) < 20 || fields[0] == "Z" {
		return 0, fmt.Errorf("the process %d has ended", pid)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// connect opens the control connection.
func connect(dir string, r record) (*process, error) {
	conn, err := net.Dial("unix", socketIn(dir))
	if err != nil {
		return nil, fmt.Errorf("connecting with the ingress proxy: %w", err)
	}
	p := &process{
		pid: r.PID, record: r, conn: conn, out: json.NewEncoder(conn), answers: make(chan table.Answer), ended: make(chan error, 1), done: make(chan struct{}),
	}
	p.reading.Go(p.read)
	return p, nil
}

// read receives answers. Where the connection ends the process has, or it listens to another run.
func (p *process) read() {
	for in := json.NewDecoder(p.conn); ; {
		var a table.Answer
		if err := in.Decode(&a); err != nil {
			p.ended <- fmt.Errorf("its connection was closed: %w; its log says why", err)
			return
		}
		select {
		case p.answers <- a:
		case <-p.done:
			return
		}
	}
}

func (p *process) close() {
	close(p.done)
	_ = p.conn.Close()
	p.reading.Wait()
}

// put has the proxy serve by a table, and returns what sections lack.
func (p *process) put(ctx context.Context, now table.Sections) (map[string]string, error) {
	changes := table.Diff(p.sent, now)
	if p.sent != nil && len(changes) == 0 {
		return p.problems, nil
	}
	if err := p.conn.SetWriteDeadline(time.Now().Add(answerWithin)); err != nil {
		return nil, err
	}
	for _, c := range append(changes, table.Change{Commit: true}) {
		if err := p.out.Encode(c); err != nil {
			return nil, err
		}
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case err := <-p.ended:
		return nil, err
	case <-time.After(answerWithin):
		return nil, fmt.Errorf("it has not answered for %s", answerWithin)
	case a := <-p.answers:
		p.sent, p.problems = now, a.Problems
	}
	return p.problems, nil
}

// stop ends the process of an earlier run, if there is one, and removes what is recorded of it.
func stop(dir string) error {
	r, err := readRecord(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && r.alive() {
		if err := syscall.Kill(r.PID, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("ending the ingress proxy: %w", err)
		}
	}
	if err := os.Remove(recordIn(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the record of the ingress proxy: %w", err)
	}
	return nil
}
