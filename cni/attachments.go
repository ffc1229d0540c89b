// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// key names one attachment: a pod sandbox's interface.
type key struct {
	ContainerID string
	IfName      string
}

func (k key) String() string { return k.ContainerID + "_" + k.IfName }

// PortMapping is one host port of a pod, as the runtime sends it for the portMappings capability.
type PortMapping struct {
	HostPort      uint16 `json:"hostPort"`
	ContainerPort uint16 `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

// attachment is a container in a network (CNI's word). Its fields are stored, since they are needed after a restart.
type attachment struct {
	ContainerID string        `json:"containerID"`
	IfName      string        `json:"ifName"`
	Netns       string        `json:"netns"`
	HostDevice  string        `json:"hostDevice"`
	MAC         string        `json:"mac"`
	IPs         []netip.Addr  `json:"ips"`
	Pod         string        `json:"pod,omitempty"` // namespace/name
	UID         string        `json:"uid,omitempty"` // the pod's
	Ports       []PortMapping `json:"ports,omitempty"`
	Bandwidth   bandwidth     `json:"bandwidth,omitzero"`
}

func (r *attachment) key() key { return key{r.ContainerID, r.IfName} }

// sandbox converts the attachment to Policies' type. It returns false for a container that is no pod of Kubernetes'.
func (r *attachment) sandbox() (Sandbox, bool) {
	namespace, name, _ := strings.Cut(r.Pod, "/")
	return Sandbox{ID: r.key().String(), Namespace: namespace, Name: name, UID: r.UID, IPs: r.IPs}, namespace != "" && name != ""
}

// isAlive reports whether the attachment's network namespace still exists. A runtime removes it only after DEL, and a
// reboot loses it. An attachment without a namespace is stale.
func (r *attachment) isAlive() bool {
	var st unix.Statfs_t
	if err := unix.Statfs(r.Netns, &st); err != nil {
		return false
	}
	return st.Type == unix.NSFS_MAGIC || st.Type == unix.PROC_SUPER_MAGIC
}

// attachmentStore keeps one JSON file per attachment, and all attachments in memory. The files are not synced to disk:
// a power cut that could lose them ends the pods, too.
type attachmentStore struct {
	dir   string
	mu    sync.Mutex
	byKey map[key]*attachment
}

func openAttachments(dir string, log klog.Logger) (*attachmentStore, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making the folder of sandbox records: %w", err)
	}
	s := &attachmentStore{dir: dir, byKey: map[key]*attachment{}}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("reading sandbox records: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("reading sandbox record: %w", err)
		}
		var r attachment
		if !strings.HasSuffix(e.Name(), ".json") || json.Unmarshal(data, &r) != nil || r.ContainerID == "" {
			// Half a file from a power cut: its sandbox has ended, and its resources are released as unknown ones.
			log.Info("Dropping an unreadable sandbox record", "file", path)
			if err := os.Remove(path); err != nil {
				return nil, fmt.Errorf("removing an unreadable sandbox record: %w", err)
			}
			continue
		}
		s.byKey[r.key()] = &r
	}
	return s, nil
}

func (s *attachmentStore) path(k key) string { return filepath.Join(s.dir, k.String()+".json") }

func (s *attachmentStore) get(k key) *attachment {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byKey[k]
}

// store stores r. The caller must not change it any more.
func (s *attachmentStore) store(r *attachment) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encoding sandbox record: %w", err)
	}
	path := s.path(r.key())
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		return fmt.Errorf("writing sandbox record: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("writing sandbox record: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byKey[r.key()] = r
	return nil
}

func (s *attachmentStore) remove(k key) error {
	if err := os.Remove(s.path(k)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing sandbox record: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byKey, k)
	return nil
}

// list returns all attachments ordered by key.
func (s *attachmentStore) list() []*attachment {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Values(s.byKey), func(a, b *attachment) int {
		return strings.Compare(a.key().String(), b.key().String())
	})
}

// keyLocks has one mutex per attachment, so that ADD, DEL and collection of the same one never interleave.
type keyLocks struct {
	mu   sync.Mutex
	held map[key]*keyLock
}

type keyLock struct {
	mu       sync.Mutex
	useCount int
}

// lock waits for k and returns the function that unlocks it.
func (l *keyLocks) lock(k key) (unlock func()) {
	l.mu.Lock()
	kl := l.useLocked(k)
	l.mu.Unlock()
	kl.mu.Lock()
	return func() { l.unlock(k, kl) }
}

// tryLock locks k if no other call holds it or waits for it.
func (l *keyLocks) tryLock(k key) (unlock func(), ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held[k] != nil {
		return nil, false
	}
	kl := l.useLocked(k)
	kl.mu.Lock() // no other goroutine has it yet, so this does not block
	return func() { l.unlock(k, kl) }, true
}

func (l *keyLocks) useLocked(k key) *keyLock {
	if l.held == nil {
		l.held = map[key]*keyLock{}
	}
	kl := l.held[k]
	if kl == nil {
		kl = &keyLock{}
		l.held[k] = kl
	}
	kl.useCount++
	return kl
}

func (l *keyLocks) unlock(k key, kl *keyLock) {
	kl.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if kl.useCount--; kl.useCount == 0 {
		delete(l.held, k)
	}
}
