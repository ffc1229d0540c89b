// SPDX-License-Identifier: Apache-2.0

package console

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// maxUsers limits how many pods are examined for the use of an object.
const maxUsers = 5000

// podUse is a pod that uses an object. How names the volume or container that refers to the object.
type podUse struct {
	Name string `json:"name"`
	How  string `json:"how"`
}

type usedByResponse struct {
	Pods []podUse `json:"pods"`
	// Partial says that there are more pods than were examined.
	Partial bool `json:"partial"`
}

// podUses is the fields of a pod that refer to other objects.
type podUses struct {
	Metadata metadata `json:"metadata"`
	Spec     struct {
		Volumes             []corev1.Volume               `json:"volumes"`
		InitContainers      []containerUses               `json:"initContainers"`
		Containers          []containerUses               `json:"containers"`
		EphemeralContainers []containerUses               `json:"ephemeralContainers"`
		ImagePullSecrets    []corev1.LocalObjectReference `json:"imagePullSecrets"`
		ServiceAccountName  string                        `json:"serviceAccountName"`
	} `json:"spec"`
}

type containerUses struct {
	Name    string                 `json:"name"`
	EnvFrom []corev1.EnvFromSource `json:"envFrom"`
	Env     []corev1.EnvVar        `json:"env"`
}

// uses calls f for each object that a pod refers to: with its resource, its name, and what refers to it.
func (p *podUses) uses(f func(resource, name, how string)) {
	for i := range p.Spec.Volumes {
		v, how := &p.Spec.Volumes[i], "volume "+p.Spec.Volumes[i].Name
		if v.Secret != nil {
			f("secrets", v.Secret.SecretName, how)
		}
		if v.ConfigMap != nil {
			f("configmaps", v.ConfigMap.Name, how)
		}
		if v.PersistentVolumeClaim != nil {
			f("persistentvolumeclaims", v.PersistentVolumeClaim.ClaimName, how)
		}
		if v.Ephemeral != nil { // the claim's name consists of both names
			f("persistentvolumeclaims", p.Metadata.Name+"-"+v.Name, how)
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
	for _, containers := range [][]containerUses{p.Spec.InitContainers, p.Spec.Containers, p.Spec.EphemeralContainers} {
		for i := range containers {
			containers[i].uses(f)
		}
	}
	for _, s := range p.Spec.ImagePullSecrets {
		f("secrets", s.Name, "imagePullSecrets")
	}
	f("serviceaccounts", p.Spec.ServiceAccountName, "serviceAccountName")
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

// usedBy answers with the pods of a namespace that use an object.
func (h *Handler) usedBy(w http.ResponseWriter, r *http.Request, u *user) {
	q := r.URL.Query()
	resource, namespace, name := q.Get("resource"), q.Get("namespace"), q.Get("name")
	if name == "" || len(validation.IsDNS1123Label(namespace)) > 0 {
		refuse(w, http.StatusBadRequest, fmt.Sprintf("%q is not the name of a namespace, or the object has none", namespace))
		return
	}
	out, err := u.podsThatUse(r.Context(), resource, namespace, name)
	if err != nil {
		refuseError(w, err)
		return
	}
	respond(w, out)
}

func (u *user) podsThatUse(ctx context.Context, resource, namespace, name string) (*usedByResponse, error) {
	out := &usedByResponse{Pods: []podUse{}}
	query := url.Values{"limit": {strconv.Itoa(pageSize)}}
	for seen := 0; ; {
		var list struct {
			Metadata struct{ Continue string }
			Items    []podUses
		}
		if err := u.get(ctx, "/api/v1/namespaces/"+namespace+"/pods", query, &list); err != nil {
			return nil, err
		}
		for i := range list.Items {
			var how []string
			list.Items[i].uses(func(of, named, by string) {
				if of == resource && named == name {
					how = append(how, by)
				}
			})
			if len(how) > 0 {
				out.Pods = append(out.Pods, podUse{Name: list.Items[i].Metadata.Name, How: strings.Join(how, ", ")})
			}
		}
		seen += len(list.Items)
		if out.Partial = list.Metadata.Continue != "" && seen >= maxUsers; out.Partial || list.Metadata.Continue == "" {
			return out, nil
		}
		query.Set("continue", list.Metadata.Continue)
	}
}
