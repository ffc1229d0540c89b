// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/coracle-k8s/coracle/controllers/term"
	"github.com/coracle-k8s/coracle/ingress/compile"
	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/internal/netinformers"
	"github.com/coracle-k8s/coracle/internal/timers"
)

// helmRelease is the type of the Secrets in which Helm stores releases. Clusters have thousands, and no route names
// one.
const helmRelease = "helm.sh/release.v1"

// retryDelay is the time until a table that could not be computed is computed again without a change.
const retryDelay = 10 * time.Second

// objects are the objects from which the table is compiled. They are followed while a client needs the table.
type objects struct {
	client  kubernetes.Interface
	log     *slog.Logger
	core    informers.SharedInformerFactory
	secrets informers.SharedInformerFactory // only of the type for certificates
	setting informers.SharedInformerFactory // the ConfigMap compile.Defaults
	wake    timers.Signal                   // sent when something has changed
	memory  compile.Memory
	rules   compile.Rules
	reads   *reads[corev1.Secret]
	configs *reads[corev1.ConfigMap]
	gateway *gateways // nil if Gateways are not served

	// secretVersions are of Secrets that are neither certificates nor releases of Helm.
	secretVersions, configMapVersions *versions

	noIngress bool
}

func newObjects(of Options) *objects {
	client := of.Client
	o := &objects{
		client: client, rules: of.Rules, log: of.Logger, noIngress: of.NoIngress, wake: timers.NewSignal(),
		core: informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(withoutUnused)),
		secrets: informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithTransform(term.Trim),
			informers.WithTweakListOptions(func(o *metav1.ListOptions) {
				o.FieldSelector = fields.OneTermEqualSelector("type", string(corev1.SecretTypeTLS)).String()
			})),
		setting: informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(compile.Defaults.Namespace),
			informers.WithTweakListOptions(func(o *metav1.ListOptions) {
				o.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, compile.Defaults.Name).String()
			})),
	}
	isNo := func(kind corev1.SecretType) fields.Selector {
		return fields.OneTermNotEqualSelector("type", string(kind))
	}
	o.secretVersions = newVersions(of.Metadata, "secrets", fields.AndSelectors(isNo(corev1.SecretTypeTLS), isNo(helmRelease)), o.wake.Send)
	o.configMapVersions = newVersions(of.Metadata, "configmaps", fields.Everything(), o.wake.Send)
	o.reads, o.configs = o.newSecrets(), o.newConfigMaps()
	if of.Gateways != nil {
		o.gateway = newGateways(client, of.Gateways, o.poke, of.Logger)
		o.gateway.secrets, o.gateway.configs = o.newSecrets(), o.newConfigMaps()
	}
	return o
}

func (o *objects) newSecrets() *reads[corev1.Secret] {
	return newReads(o.secretVersions, func(ctx context.Context, name types.NamespacedName) (*corev1.Secret, error) {
		return o.client.CoreV1().Secrets(name.Namespace).Get(ctx, name.Name, metav1.GetOptions{})
	})
}

func (o *objects) newConfigMaps() *reads[corev1.ConfigMap] {
	return newReads(o.configMapVersions, func(ctx context.Context, name types.NamespacedName) (*corev1.ConfigMap, error) {
		return o.client.CoreV1().ConfigMaps(name.Namespace).Get(ctx, name.Name, metav1.GetOptions{})
	})
}

func (o *objects) poke(any) {
	o.wake.Send()
}

// withoutUnused removes what the table does not depend on.
func withoutUnused(o any) (any, error) {
	if i, ok := o.(*networkingv1.Ingress); ok {
		i.Spec.TLS = compile.TLS(i.Spec.TLS)
	}
	return term.Trim(o)
}

// run compiles the table after each change, until ctx is done.
func (o *objects) run(ctx context.Context, put func(table.Sections)) {
	ingresses, classes := o.core.Networking().V1().Ingresses(), o.core.Networking().V1().IngressClasses()
	secrets, setting := o.secrets.Core().V1().Secrets(), o.setting.Core().V1().ConfigMaps()
	synced, err := netinformers.Follow(o.poke, []netinformers.Source{
		{Informer: ingresses.Informer()}, {Informer: classes.Informer()}, {Informer: secrets.Informer()}, {Informer: setting.Informer()},
	}...)
	if err != nil { // only for an informer that has ended, and none has begun
		o.log.Error("ingress: listening to an informer failed", "error", err)
		return
	}
	o.core.Start(ctx.Done())
	o.secrets.Start(ctx.Done())
	o.setting.Start(ctx.Done())
	defer o.core.Shutdown()
	defer o.secrets.Shutdown()
	defer o.setting.Shutdown()
	defer o.secretVersions.running.Wait()
	defer o.configMapVersions.running.Wait()
	if o.gateway != nil {
		var following sync.WaitGroup
		defer following.Wait()
		following.Go(func() { o.gateway.objects.Run(ctx, o.gateway.usage) })
		defer o.gateway.shutdown()
	}
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		return
	}
	o.wake.Rounds(ctx, gatherDelay, func() time.Duration {
		state := compile.State{Rules: o.rules, Secrets: map[types.NamespacedName]*corev1.Secret{}}
		if !o.noIngress {
			state.Ingresses, _ = ingresses.Lister().List(labels.Everything()) // a cache's lister returns no error
			state.Classes, _ = classes.Lister().List(labels.Everything())
			// nil if there is none
			state.Defaults, _ = setting.Lister().ConfigMaps(compile.Defaults.Namespace).Get(compile.Defaults.Name)
		}
		secret := func(name types.NamespacedName) *corev1.Secret {
			s, _ := secrets.Lister().Secrets(name.Namespace).Get(name.Name) // nil if there is none
			return s
		}
		state.Default, state.Account = secret(compile.DefaultCertificate), secret(compile.Account)
		return o.compile(ctx, state, secret, put)
	})
}

// compile makes the table. It returns the time after which it has to be called again without a change, 0 for never.
func (o *objects) compile(ctx context.Context, state compile.State, secret func(types.NamespacedName) *corev1.Secret,
	put func(table.Sections)) (again time.Duration) {
	state.Memory = &o.memory
	var unwatched []types.NamespacedName
	for name := range compile.Wanted(state) {
		if s := secret(name); s != nil {
			state.Secrets[name] = s
		} else {
			unwatched = append(unwatched, name)
		}
	}
	_, again = o.reads.sync(ctx, unwatched)
	for _, name := range unwatched {
		if s := o.reads.object(name); s != nil {
			state.Secrets[name] = s
		}
	}
	again = timers.ShorterWait(again, o.configMaps(ctx, &state))
	if ctx.Err() != nil {
		return 0
	}
	r, err := compile.Desired(state)
	if err != nil {
		o.log.Error("ingress: the routing table cannot be computed; the previous one stays in use", "error", err)
		return again
	}
	if o.gateway != nil {
		s, later, complete, err := o.gateway.sections(ctx, secret)
		if err != nil {
			o.log.Error("gateway: the routing table cannot be computed; the previous one stays in use", "error", err)
			return retryDelay
		}
		if !complete { // with a table without the Gateways' sections nodes would close their sockets
			return again
		}
		again = timers.ShorterWait(again, later)
		maps.Copy(r.Sections, s)
	}
	put(r.Sections)
	return again
}

// configMaps reads the ConfigMaps that Ingresses name. It returns when to read again, 0 for never.
func (o *objects) configMaps(ctx context.Context, state *compile.State) (again time.Duration) {
	names := slices.Collect(maps.Keys(compile.WantedConfigMaps(*state)))
	_, again = o.configs.sync(ctx, names)
	state.ConfigMaps = make(map[types.NamespacedName]*corev1.ConfigMap, len(names))
	for _, name := range names {
		if m := o.configs.object(name); m != nil {
			state.ConfigMaps[name] = m
		}
	}
	return again
}
