// SPDX-License-Identifier: Apache-2.0

package localpath

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/retry"

	"github.com/coracle-k8s/coracle/internal/status"
	"github.com/coracle-k8s/coracle/localvolume"
)

const (
	// leftoversConfigMap is the name of a ConfigMap in kube-system. It holds the paths of removed volumes, one per
	// line, by the names of nodes that were no longer in the cluster.
	leftoversConfigMap = "local-storage.coracle"
	// maxLeftovers limits the recorded paths of a node, so that the object stays well below the API's limit.
	maxLeftovers = 1000
	// sweepPeriod is the interval of attempts while there are leftovers.
	sweepPeriod = time.Minute
)

// watchNodes wakes Run when a node is added.
func (v *Volumes) watchNodes() error {
	_, err := v.o.NodeInformer.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(any) { v.wakeup.Send() }})
	if err != nil {
		return fmt.Errorf("watching nodes for what removed volumes left: %w", err)
	}
	return nil
}

// recordLeftover records a directory that has to be removed when its node comes back.
func (v *Volumes) recordLeftover(node, path string) error {
	err := v.updateLeftovers(v.o.Context, func(data map[string]string) {
		paths := strings.Fields(data[node])
		if !slices.Contains(paths, path) {
			paths = append(paths, path)
		}
		data[node] = strings.Join(paths[max(0, len(paths)-maxLeftovers):], "\n")
	})
	if err != nil {
		return fmt.Errorf("writing down that %s is to be removed when node %s is back: %w", path, node, err)
	}
	v.o.Logger.Info("a volume is removed whose node is no longer of the cluster; its directory goes if that node comes back", "node", node,
		"path", path)
	v.wakeup.Send()
	return nil
}

// updateLeftovers changes the ConfigMap of leftovers. It creates a missing object, and deletes an empty one.
func (v *Volumes) updateLeftovers(ctx context.Context, f func(map[string]string)) error {
	objects := v.o.Client.CoreV1().ConfigMaps(metav1.NamespaceSystem)
	return retry.OnError(retry.DefaultRetry, func(err error) bool { return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) },
		func() error {
			m, err := objects.Get(ctx, leftoversConfigMap, metav1.GetOptions{})
			missing := apierrors.IsNotFound(err)
			if err != nil && !missing {
				return err
			}
			if missing {
				m = &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: leftoversConfigMap, Namespace: metav1.NamespaceSystem}}
			}
			if m.Data == nil {
				m.Data = map[string]string{}
			}
			f(m.Data)
			switch {
			case missing && len(m.Data) == 0:
				return nil
			case missing:
				_, err = objects.Create(ctx, m, metav1.CreateOptions{})
			case len(m.Data) == 0:
				err = objects.Delete(ctx, leftoversConfigMap,
					metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &m.UID, ResourceVersion: &m.ResourceVersion}})
			default:
				_, err = objects.Update(ctx, m, metav1.UpdateOptions{})
			}
			return err
		})
}

// Run removes leftovers when their nodes are back, sets finalizers and chooses nodes of claims, until ctx is done.
// Without work it sleeps.
func (v *Volumes) Run(ctx context.Context) {
	defer v.o.Part.Set(status.Waiting, "this server does not lead")
	var beside sync.WaitGroup
	defer beside.Wait()
	beside.Go(func() { v.nodeNames.Rounds(ctx, gatherDelay, func() time.Duration { return v.chooseNodes(ctx) }) })
	v.wakeup.Rounds(ctx, 0, func() time.Duration {
		finalizers := v.setFinalizers(ctx)
		left, err := v.collect(ctx)
		switch {
		case ctx.Err() != nil:
			return 0
		case finalizers != nil:
			v.o.Part.Set(status.Degraded, finalizers.Error())
		case err != nil:
			v.o.Part.Set(status.Degraded, "directories of removed volumes are left on nodes: "+err.Error())
		case len(left) > 0:
			v.o.Part.Set(status.Running, "directories of removed volumes are left on nodes that are away: "+strings.Join(left, ", "))
		default:
			v.o.Part.Set(status.Running, "")
			return 0
		}
		return sweepPeriod
	})
}

// collect removes the leftovers that can be removed. It returns the nodes that have no connection.
func (v *Volumes) collect(ctx context.Context) (away []string, err error) {
	m, err := v.o.Client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, leftoversConfigMap, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading which directories are left: %w", err)
	}
	var errs []error
	for _, node := range slices.Sorted(maps.Keys(m.Data)) {
		removed, err := v.removeOn(ctx, node, strings.Fields(m.Data[node]))
		if errors.Is(err, ErrAway) {
			away = append(away, node)
		} else if err != nil {
			errs = append(errs, fmt.Errorf("node %s: %w", node, err))
		}
		if len(removed) == 0 {
			continue
		}
		errs = append(errs, v.updateLeftovers(ctx, func(data map[string]string) {
			rest := slices.DeleteFunc(strings.Fields(data[node]), func(p string) bool { return slices.Contains(removed, p) })
			if data[node] = strings.Join(rest, "\n"); len(rest) == 0 {
				delete(data, node)
			}
		}))
	}
	return away, errors.Join(errs...)
}

// removeOn removes directories on a node and returns the paths that need no further attempt.
func (v *Volumes) removeOn(ctx context.Context, node string, paths []string) (removed []string, err error) {
	if there, err := v.nodeExists(node); err != nil || !there {
		return nil, errors.Join(err, ErrAway)
	}
	for _, path := range paths {
		folder, name, ok := localvolume.Split(path)
		if ok { // an entry that is not a path of a coracle volume is dropped
			pv, _, _ := strings.Cut(name, "_")
			_, err := v.o.Client.CoreV1().PersistentVolumes().Get(ctx, pv, metav1.GetOptions{})
			if err != nil && !apierrors.IsNotFound(err) {
				return removed, fmt.Errorf("looking for PersistentVolume %s: %w", pv, err)
			}
			// The directory of an existing PersistentVolume stays, and the entry is dropped: a user may have edited or
			// restored the ConfigMap.
			ok = err != nil
		}
		if ok {
			_, err := v.o.Nodes.AskVolumes(ctx, node, localvolume.Request{Op: localvolume.Remove, Folder: folder, Name: name})
			if err != nil {
				return removed, err
			}
			v.o.Logger.Info("the directory of a removed volume is gone: its node is back", "node", node, "path", path)
		}
		removed = append(removed, path)
	}
	return removed, nil
}
