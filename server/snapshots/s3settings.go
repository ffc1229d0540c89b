// SPDX-License-Identifier: Apache-2.0

package snapshots

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/coracle-k8s/coracle/internal/config"
)

// S3Settings are a server's settings for S3.
type S3Settings struct {
	// On says that snapshots are kept on S3, unless a request overrides it.
	On bool
	// Values are the settings. They override those in the Secret of kube-system, if Secret is set.
	Values map[string]string
	Secret string
	// API returns the client with which the Secret is read.
	API func() (kubernetes.Interface, error)
}

// For returns where snapshots are kept besides this machine, or nil. The settings of the request in ctx override the
// server's.
func (s S3Settings) For(ctx context.Context) (*config.S3, error) {
	asked := QueryOf(ctx)
	on := s.On
	if asked.On != nil {
		on = *asked.On
	}
	switch {
	case !on && asked.On == nil && len(asked.Values) > 0:
		return nil, errors.New("settings for S3 were given, but this server keeps snapshots on its machine only: add --snapshot-s3")
	case !on:
		return nil, nil
	}
	values := s.Values
	if s.Secret != "" {
		client, err := s.API()
		if err != nil {
			return nil, fmt.Errorf("the settings for S3 are in a Secret: %w", err)
		}
		if values, err = s3Values(ctx, client, s.Secret, values); err != nil {
			return nil, err
		}
	}
	out, err := config.ParseS3(config.OverlayS3(values, asked.Values))
	if err != nil {
		return nil, fmt.Errorf("the settings for S3: %w", err)
	}
	return out, nil
}

// s3Values returns the settings in the Secret, overridden by the given ones. The certificate of an authority may be in
// a ConfigMap that the Secret names, as with k3s.
func s3Values(ctx context.Context, client kubernetes.Interface, name string, given map[string]string) (map[string]string, error) {
	secret, err := client.CoreV1().Secrets(metav1.NamespaceSystem).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("reading the settings for S3: %w", err)
	}
	values := config.S3FromSecret(secret.Data)
	if ca := values[config.S3EndpointCAName]; ca != "" {
		cm, err := client.CoreV1().ConfigMaps(metav1.NamespaceSystem).Get(ctx, ca, metav1.GetOptions{})
		if err != nil {
			return nil, fmt.Errorf("reading the authority of the S3 server: %w", err)
		}
		for _, key := range slices.Sorted(maps.Keys(cm.Data)) {
			values[config.S3EndpointCA] += cm.Data[key] + "\n"
		}
	}
	return config.OverlayS3(values, given), nil
}
