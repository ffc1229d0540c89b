// SPDX-License-Identifier: Apache-2.0

package console

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/utils/ptr"
)

// maxUsers limits how many objects of one kind are examined for the use of an object.
const maxUsers = 5000

// reference is an object that uses another.
type reference struct {
	// Resource is the kind's name and group, such as "deployments.apps".
	Resource string `json:"resource"`
	Name     string `json:"name"`
	// How names the volumes, containers or fields that refer to the other object.
	How string `json:"how"`
}

type usedByResponse struct {
	Users []reference `json:"users"`
	// Partial are the kinds of which there are more objects than were examined. Hidden are those that the user may not
	// list.
	Partial []string `json:"partial"`
	Hidden  []string `json:"hidden"`
}

// usingKind is a kind whose objects may use others.
type usingKind struct {
	resource, group string // the group with its version; "" for the core group
	// usedResources are the resources that its objects may use. nil means all those that pods may use.
	usedResources []string
}

// usingKinds are in the order in which users want to read them: what makes pods, and then the pods.
var usingKinds = []usingKind{
	{resource: "deployments", group: "apps/v1"}, {resource: "statefulsets", group: "apps/v1"}, {resource: "daemonsets", group: "apps/v1"},
	{resource: "cronjobs", group: "batch/v1"}, {resource: "jobs", group: "batch/v1"}, {resource: "replicasets", group: "apps/v1"},
	{resource: "replicationcontrollers"}, {resource: "pods"},
	{resource: "ingresses", group: "networking.k8s.io/v1", usedResources: []string{"secrets"}},
	{resource: "gateways", group: "gateway.networking.k8s.io/v1", usedResources: []string{"secrets"}},
	{resource: "serviceaccounts", usedResources: []string{"secrets"}},
}

func (k *usingKind) path(namespace string) string {
	root := "/api/v1"
	if k.group != "" {
		root = "/apis/" + k.group
	}
	return root + "/namespaces/" + namespace + "/" + k.resource
}

// groupResource returns the kind's name and group, without the group's version.
func (k *usingKind) groupResource() string {
	group, _, _ := strings.Cut(k.group, "/")
	return strings.TrimSuffix(k.resource+"."+group, ".")
}

// podUses is the fields of a pod's specification that refer to other objects.
type podUses struct {
	Volumes             []corev1.Volume               `json:"volumes"`
	InitContainers      []containerUses               `json:"initContainers"`
	Containers          []containerUses               `json:"containers"`
	EphemeralContainers []containerUses               `json:"ephemeralContainers"`
	ImagePullSecrets    []corev1.LocalObjectReference `json:"imagePullSecrets"`
	ServiceAccountName  string                        `json:"serviceAccountName"`
}

type containerUses struct {
	Name    string                 `json:"name"`
	EnvFrom []corev1.EnvFromSource `json:"envFrom"`
	Env     []corev1.EnvVar        `json:"env"`
}

type templateUses struct {
	Spec podUses `json:"spec"`
}

// usingObject is the fields of an object of any usingKind that refer to other objects.
type usingObject struct {
	Metadata         metadata                      `json:"metadata"`
	ImagePullSecrets []corev1.LocalObjectReference `json:"imagePullSecrets"` // a service account's
	Spec             struct {
		podUses
		Template    templateUses `json:"template"`
		JobTemplate struct {
			Spec struct {
				Template templateUses `json:"template"`
			} `json:"spec"`
		} `json:"jobTemplate"`
		VolumeClaimTemplates []struct {
			Metadata metadata `json:"metadata"`
		} `json:"volumeClaimTemplates"`
		TLS []struct {
			SecretName string `json:"secretName"`
		} `json:"tls"`
		Listeners []struct {
			Name string `json:"name"`
			TLS  struct {
				CertificateRefs []struct {
					Kind, Name, Namespace string
				} `json:"certificateRefs"`
			} `json:"tls"`
		} `json:"listeners"`
	} `json:"spec"`
}

// uses returns the fields of an object that refer to another object of its namespace.
func (o *usingObject) uses(resource, name string) (how []string) {
	report := func(of, named, by string) {
		if of == resource && named == name {
			how = append(how, by)
		}
	}
	s := &o.Spec
	s.podUses.uses(report)
	s.Template.Spec.uses(report)
	s.JobTemplate.Spec.Template.Spec.uses(report)
	for _, v := range s.Volumes {
		if v.Ephemeral != nil { // the claim's name consists of both names
			report("persistentvolumeclaims", o.Metadata.Name+"-"+v.Name, "volume "+v.Name)
		}
	}
	for _, v := range s.VolumeClaimTemplates { // the claims of the set's pods
		start := v.Metadata.Name + "-" + o.Metadata.Name + "-"
		if number, found := strings.CutPrefix(name, start); found && isNumber(number) {
			report("persistentvolumeclaims", name, "claim template "+v.Metadata.Name)
		}
	}
	for _, t := range s.TLS {
		report("secrets", t.SecretName, "tls")
	}
	for _, l := range s.Listeners {
		for _, c := range l.TLS.CertificateRefs {
			if (c.Kind == "" || c.Kind == "Secret") && (c.Namespace == "" || c.Namespace == o.Metadata.Namespace) {
				report("secrets", c.Name, "listener "+l.Name)
			}
		}
	}
	for _, p := range o.ImagePullSecrets {
		report("secrets", p.Name, "imagePullSecrets")
	}
	return how
}

func isNumber(text string) bool {
	_, err := strconv.ParseUint(text, 10, 31)
	return err == nil
}

// uses calls f for each object that a pod refers to: with its resource, its name, and what refers to it.
func (p *podUses) uses(f func(resource, name, how string)) {
	for i := range p.Volumes {
		v, how := &p.Volumes[i], "volume "+p.Volumes[i].Name
		if v.Secret != nil {
			f("secrets", v.Secret.SecretName, how)
		}
		if v.ConfigMap != nil {
			f("configmaps", v.ConfigMap.Name, how)
		}
		if v.PersistentVolumeClaim != nil {
			f("persistentvolumeclaims", v.PersistentVolumeClaim.ClaimName, how)
		}
		if v.CSI != nil && v.CSI.NodePublishSecretRef != nil {
			f("secrets", v.CSI.NodePublishSecretRef.Name, how)
		}
		if v.Projected != nil {
			for _, s := range v.Projected.Sources {
				if s.Secret != nil {
					f("secrets", s.Secret.Name, how)
				}
				if s.ConfigMap != nil {
					f("configmaps", s.ConfigMap.Name, how)
				}
			}
		}
	}
	for _, containers := range [][]containerUses{p.InitContainers, p.Containers, p.EphemeralContainers} {
		for i := range containers {
			containers[i].uses(f)
		}
	}
	for _, s := range p.ImagePullSecrets {
		f("secrets", s.Name, "imagePullSecrets")
	}
	f("serviceaccounts", p.ServiceAccountName, "serviceAccountName")
}

func (c *containerUses) uses(f func(resource, name, how string)) {
	for _, from := range c.EnvFrom {
		if from.SecretRef != nil {
			f("secrets", from.SecretRef.Name, "envFrom of "+c.Name)
		}
		if from.ConfigMapRef != nil {
			f("configmaps", from.ConfigMapRef.Name, "envFrom of "+c.Name)
		}
	}
	for i := range c.Env {
		from := c.Env[i].ValueFrom
		if from != nil && from.SecretKeyRef != nil {
			f("secrets", from.SecretKeyRef.Name, c.Env[i].Name+" of "+c.Name)
		}
		if from != nil && from.ConfigMapKeyRef != nil {
			f("configmaps", from.ConfigMapKeyRef.Name, c.Env[i].Name+" of "+c.Name)
		}
	}
}

// usedBy answers with the objects of a namespace that use an object.
func (h *Handler) usedBy(r *http.Request, u *user) (any, error) {
	q := r.URL.Query()
	resource, namespace, name := q.Get("resource"), q.Get("namespace"), q.Get("name")
	if name == "" || len(validation.IsDNS1123Label(namespace)) > 0 {
		return nil, newRequestError(http.StatusBadRequest, "%q is not the name of a namespace, or the object has none", namespace)
	}
	out := &usedByResponse{Users: []reference{}, Partial: []string{}, Hidden: []string{}}
	for i := range usingKinds {
		k := &usingKinds[i]
		if k.usedResources != nil && !slices.Contains(k.usedResources, resource) {
			continue
		}
		switch err := u.findUses(r.Context(), k, resource, namespace, name, out); {
		case err == nil, apierrors.IsNotFound(err): // the cluster may not have the kind
		case apierrors.IsForbidden(err):
			out.Hidden = append(out.Hidden, k.groupResource())
		default:
			return nil, err
		}
	}
	return out, nil
}

// findUses adds the objects of one kind that use an object. It leaves out objects, except pods, that a controller made
// from a template: the object with the template is listed.
func (u *user) findUses(ctx context.Context, k *usingKind, resource, namespace, name string, out *usedByResponse) error {
	query := url.Values{"limit": {strconv.Itoa(pageSize)}}
	for seen := 0; ; {
		var list struct {
			Metadata struct{ Continue string }
			Items    []usingObject
		}
		if err := u.get(ctx, k.path(namespace), query, &list); err != nil {
			return err
		}
		for i := range list.Items {
			o := &list.Items[i]
			made := slices.ContainsFunc(o.Metadata.OwnerReferences, isController)
			if how := o.uses(resource, name); len(how) > 0 && (k.resource == "pods" || !made) {
				out.Users = append(out.Users, reference{Resource: k.groupResource(), Name: o.Metadata.Name, How: strings.Join(how, ", ")})
			}
		}
		if seen += len(list.Items); list.Metadata.Continue == "" {
			return nil
		}
		if seen >= maxUsers {
			out.Partial = append(out.Partial, k.groupResource())
			return nil
		}
		query.Set("continue", list.Metadata.Continue)
	}
}

func isController(r metav1.OwnerReference) bool { return ptr.Deref(r.Controller, false) }
