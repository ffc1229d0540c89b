// SPDX-License-Identifier: Apache-2.0

// Package definitions defines the kinds of the Gateway API in a cluster: the standard channel of the module
// sigs.k8s.io/gateway-api of go.mod.
//
// It owns the CustomResourceDefinitions that it has made. It does not touch those that an administrator installs, of
// another channel or of a newer version. It leaves out kinds that the ingress does not serve (TCPRoute, UDPRoute), and
// versions that the module itself does not serve.
package definitions

import (
	"bytes"
	"context"
	_ "embed" // of the definitions
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	utilversion "k8s.io/apimachinery/pkg/util/version"
	"k8s.io/client-go/dynamic"

	"github.com/coracle-k8s/coracle/controllers/definition"
	"github.com/coracle-k8s/coracle/internal/convert"
)

const (
	managedBy, managerName = "app.kubernetes.io/managed-by", "coracle"
	versionAnnotation      = "gateway.networking.k8s.io/bundle-version"
	channelAnnotation      = "gateway.networking.k8s.io/channel"
)

// standardFile holds the definitions in compressed JSON. gen writes the file.
//
//go:generate go run ./gen standard.json.zst
//go:embed standard.json.zst
var standardFile []byte

// Read returns the definitions in the form in which they are created.
func Read() ([]*unstructured.Unstructured, error) {
	in, err := zstd.NewReader(bytes.NewReader(standardFile), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, fmt.Errorf("reading the definitions of the Gateway API: %w", err)
	}
	defer in.Close()
	text, err := io.ReadAll(in)
	if err != nil {
		return nil, fmt.Errorf("reading the definitions of the Gateway API: %w", err)
	}
	var all []map[string]any
	if err := json.Unmarshal(text, &all); err != nil {
		return nil, fmt.Errorf("reading the definitions of the Gateway API: %w", err)
	}
	out := make([]*unstructured.Unstructured, 0, len(all))
	for _, o := range all {
		u := &unstructured.Unstructured{Object: o}
		u.SetLabels(labels.Merge(u.GetLabels(), labels.Set{managedBy: managerName}))
		out = append(out, u)
	}
	return out, nil
}

// Define makes the missing definitions. It replaces its own ones of an older version.
func Define(ctx context.Context, c dynamic.Interface) error {
	all, err := Read()
	if err != nil {
		return err
	}
	return errors.Join(convert.Slice(all, func(want *unstructured.Unstructured) error {
		return definition.Put(ctx, c, want, func(have *unstructured.Unstructured) bool { return isOlder(have, want) })
	})...)
}

// isOlder reports whether a definition is from an older version of the same channel.
func isOlder(have, want *unstructured.Unstructured) bool {
	a, b := have.GetAnnotations(), want.GetAnnotations()
	if a[channelAnnotation] != b[channelAnnotation] {
		return false
	}
	is, err := utilversion.ParseSemantic(a[versionAnnotation])
	if err != nil {
		return false
	}
	than, err := utilversion.ParseSemantic(b[versionAnnotation])
	return err == nil && is.LessThan(than)
}

// Remove removes the definitions that this package has made. The caller has checked that there are no objects, which
// would be deleted with them.
func Remove(ctx context.Context, c dynamic.Interface) error {
	all, err := Read()
	if err != nil {
		return err
	}
	return errors.Join(convert.Slice(all, func(want *unstructured.Unstructured) error {
		return definition.Remove(ctx, c, want.GetName(), func() (bool, error) { return true, nil })
	})...)
}
