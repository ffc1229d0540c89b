// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/coracle-k8s/coracle/internal/truncate"
)

const (
	// inventoryLabel is a label of every inventory.
	inventoryLabel = "coracle.dev/manifest-record"
	// fileAnnotation is an annotation of every applied object. It names the file: edit that, not the object.
	fileAnnotation = "coracle.dev/manifest"

	statusApplied = "applied"
)

// inventory is a ConfigMap with the objects that were applied from one file.
type inventory struct {
	file   string
	server string // the server whose folder has the file
	// objects are all that may be in the cluster because of the file.
	objects []ref
	// status is "applied", or an error. hash is the hash of the content that was applied last.
	status, hash string

	stored *corev1.ConfigMap // as last read or written; nil before that
}

// inventoryName returns the name of the ConfigMap that holds a file's inventory. Every file name gives a valid
// ConfigMap name, and the same file name always gives the same one.
func inventoryName(file string) string {
	sum := sha256.Sum256([]byte(file))
	return "coracle-manifest-" + hex.EncodeToString(sum[:8])
}

func (m *Manifests) loadInventories(ctx context.Context) error {
	list, err := m.kube.CoreV1().ConfigMaps(metav1.NamespaceSystem).List(ctx, metav1.ListOptions{LabelSelector: inventoryLabel})
	if err != nil {
		return fmt.Errorf("listing the inventories of manifests: %w", err)
	}
	inventories := map[string]*inventory{}
	for i := range list.Items {
		r, err := parseInventory(&list.Items[i])
		if err != nil {
			m.log.Warn("an inventory of a manifest was changed by hand and is ignored: what its file applied is not deleted with the file",
				"configMap", list.Items[i].Name, "error", err)
			continue
		}
		inventories[r.file] = r
	}
	m.inventories = inventories
	return nil
}

func parseInventory(c *corev1.ConfigMap) (*inventory, error) {
	r := &inventory{file: c.Data["file"], server: c.Data["server"], status: c.Data["status"], hash: c.Data["hash"], stored: c}
	if r.file == "" || c.Name != inventoryName(r.file) {
		return nil, errors.New("it does not name its file")
	}
	for line := range strings.Lines(c.Data["objects"]) {
		f := strings.Fields(line)
		if len(f) != 4 {
			return nil, fmt.Errorf("the line %q does not have four words", strings.TrimSpace(line))
		}
		gv, err := schema.ParseGroupVersion(f[0])
		if err != nil {
			return nil, err
		}
		o := ref{GroupVersionKind: gv.WithKind(f[1]), Namespace: f[2], Name: f[3]}
		if o.Namespace == "-" {
			o.Namespace = ""
		}
		r.objects = append(r.objects, o)
	}
	return r, nil
}

func (r *inventory) data() map[string]string {
	var lines strings.Builder
	for _, o := range r.objects {
		namespace := o.Namespace
		namespace = cmp.Or(namespace, "-")
		fmt.Fprintf(&lines, "%s %s %s %s\n", o.GroupVersion(), o.Kind, namespace, o.Name)
	}
	return map[string]string{"file": r.file, "server": r.server, "status": r.status, "hash": r.hash, "objects": lines.String()}
}

// configMapOf returns the inventory's ConfigMap. It has no resource version, as the leader overwrites what others
// wrote.
func configMapOf(r *inventory) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: inventoryName(r.file),
			Labels: map[string]string{inventoryLabel: ""}},
		Data: r.data(),
	}
}

// save writes the inventory if it differs from the stored one.
func (m *Manifests) save(ctx context.Context, r *inventory) error {
	api := m.kube.CoreV1().ConfigMaps(metav1.NamespaceSystem)
	c := configMapOf(r)
	if r.stored != nil && maps.Equal(r.stored.Data, c.Data) {
		return nil
	}
	stored, err := api.Update(ctx, c, metav1.UpdateOptions{FieldManager: fieldManager})
	if apierrors.IsNotFound(err) {
		stored, err = api.Create(ctx, c, metav1.CreateOptions{FieldManager: fieldManager})
	}
	if err != nil {
		return fmt.Errorf("writing the inventory of %s: %w", r.file, err)
	}
	r.stored = stored
	return nil
}

// deleteInventory deletes an inventory whose file and objects do not exist any more.
func (m *Manifests) deleteInventory(ctx context.Context, r *inventory) error {
	err := m.kube.CoreV1().ConfigMaps(metav1.NamespaceSystem).Delete(ctx, inventoryName(r.file), metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("deleting the inventory of %s: %w", r.file, err)
	}
	delete(m.inventories, r.file)
	return nil
}

// inventoryOf returns a file's inventory, or a new one if there is none.
func (m *Manifests) inventoryOf(name string) *inventory {
	r := m.inventories[name]
	if r == nil {
		r = &inventory{file: name}
		m.inventories[name] = r
	}
	r.server = m.o.ServerID
	return r
}

// report reports an error of a file, once: in the log, in the file's inventory and as an Event.
func (m *Manifests) report(ctx context.Context, name string, f *file, reason string, err error) {
	if ctx.Err() != nil || f.reported == err.Error() {
		return
	}
	f.reported = err.Error()
	m.log.Error("a manifest could not be applied", "file", name, "error", err)
	r := m.inventoryOf(name)
	r.status = err.Error()
	if err := m.save(ctx, r); err != nil {
		m.log.Warn("the error of a manifest could not be recorded", "error", err)
		return
	}
	m.event(r, corev1.EventTypeWarning, reason, err.Error())
}

// event records an Event about a file's inventory.
func (m *Manifests) event(r *inventory, kind, reason, message string) {
	m.events.Event(r.stored, kind, reason, truncate.Text(message, 1000)) // the API server accepts 1,024 bytes
}

// union returns a with the elements of b that it lacks.
func union(a, b []ref) []ref {
	out := slices.Clone(a)
	for _, r := range b {
		if !contains(out, r) {
			out = append(out, r)
		}
	}
	return out
}

func contains(list []ref, r ref) bool {
	return slices.ContainsFunc(list, func(o ref) bool { return o.key() == r.key() })
}
