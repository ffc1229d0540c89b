// SPDX-License-Identifier: Apache-2.0

package helmcharts

import (
	"context"
	"crypto/rand"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// sealName is the Secret in kube-system with the key that seals records of releases. All servers use the same key,
	// for ever.
	sealName = "helm-releases.coracle"
	sealKey  = "seal"
)

// seal returns the key with which the stored records of Helm releases are authenticated. The whole cluster has one key,
// in the Secret sealName, and seal makes it if it is missing. This happens before the first child process starts.
func (c *Controller) seal(ctx context.Context) ([]byte, error) {
	if len(c.sealed) > 0 {
		return c.sealed, nil
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	secrets := c.o.Client.CoreV1().Secrets(metav1.NamespaceSystem)
	s, err := secrets.Get(ctx, sealName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		s, err = secrets.Create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: sealName, Namespace: metav1.NamespaceSystem},
			Data:       map[string][]byte{sealKey: []byte(rand.Text())},
		}, metav1.CreateOptions{FieldManager: managerName})
	}
	if err != nil {
		return nil, fmt.Errorf("reading what releases of Helm are sealed with: %w", err)
	}
	if len(s.Data[sealKey]) == 0 {
		return nil, fmt.Errorf("the Secret %s/%s, with which releases of Helm are sealed, has no key %s: remove it, and it is made again",
			metav1.NamespaceSystem, sealName, sealKey)
	}
	c.sealed = s.Data[sealKey]
	return c.sealed, nil
}
