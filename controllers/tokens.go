// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"os"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	certutil "k8s.io/client-go/util/cert"
	"k8s.io/client-go/util/keyutil"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/cmd/kube-controller-manager/app"
	"k8s.io/kubernetes/cmd/kube-controller-manager/names"
	serviceaccountcontroller "k8s.io/kubernetes/pkg/controller/serviceaccount"
	"k8s.io/kubernetes/pkg/serviceaccount"

	"github.com/coracle-k8s/coracle/controllers/term"
)

// tokenController fills Secrets of the service account token type. Upstream runs it with full permissions, since it
// mints credentials for others.
type tokenController struct {
	*serviceaccountcontroller.TokensController
	workers int
}

func (c tokenController) Name() string { return names.ServiceAccountTokenController }

func (c tokenController) Run(ctx context.Context) { c.TokensController.Run(ctx, c.workers) }

// newTokenController returns nil when there is no signing key.
func newTokenController(ctx context.Context, cc app.ControllerContext, t *term.Term) (app.Controller, error) {
	o := cc.ComponentConfig.SAController
	if o.ServiceAccountKeyFile == "" {
		klog.FromContext(ctx).Info("No service account key, so Secrets of the token type stay empty")
		return nil, nil
	}
	key, err := keyutil.PrivateKeyFromFile(o.ServiceAccountKeyFile)
	if err != nil {
		return nil, fmt.Errorf("read the service account key: %w", err)
	}
	generator, err := serviceaccount.JWTTokenGenerator(serviceaccount.LegacyIssuer, key)
	if err != nil {
		return nil, fmt.Errorf("service account key %s: %w", o.ServiceAccountKeyFile, err)
	}
	rootCA := t.Config.CAData
	if o.RootCAFile != "" {
		if rootCA, err = os.ReadFile(o.RootCAFile); err != nil {
			return nil, fmt.Errorf("read the root CA: %w", err)
		}
		if _, err := certutil.ParseCertsPEM(rootCA); err != nil {
			return nil, fmt.Errorf("root CA %s: %w", o.RootCAFile, err)
		}
	}
	client, err := kubernetes.NewForConfig(rest.AddUserAgent(rest.CopyConfig(t.Config), "tokens-controller"))
	if err != nil {
		return nil, fmt.Errorf("make a client for the token controller: %w", err)
	}
	c, err := serviceaccountcontroller.NewTokensController(klog.FromContext(ctx),
		t.Informers.Core().V1().ServiceAccounts(), t.Informers.Core().V1().Secrets(), client,
		serviceaccountcontroller.TokensControllerOptions{TokenGenerator: generator, RootCA: rootCA})
	if err != nil {
		return nil, fmt.Errorf("make the token controller: %w", err)
	}
	return tokenController{c, int(o.ConcurrentSATokenSyncs)}, nil
}
