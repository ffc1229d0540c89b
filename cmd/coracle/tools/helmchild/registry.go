// SPDX-License-Identifier: Apache-2.0

package helmchild

import (
	"context"
	"errors"
	"io"
	"net/url"
	"strings"

	"github.com/Masterminds/semver/v3"
	"helm.sh/helm/v4/pkg/registry"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"

	"github.com/coracle-k8s/coracle/controllers/helmcharts/helmjob"
)

// pull fetches a chart from a registry. The reference has the form oci://host/path, followed by :tag or @digest, or the
// version is the request's. It returns the archive and, for messages, the chart's name in the registry.
func (f *fetcher) pull(ref string) ([]byte, string, error) {
	what := "the chart " + ref
	u, err := url.Parse(ref)
	if err != nil || u.Host == "" || u.User != nil {
		return nil, "", newFailure(helmjob.BadRequest, false, "The chart's reference is none of a registry: its form is oci://host/path/chart.")
	}
	if v := f.c.Version; v != "" {
		if _, err := semver.NewConstraint(v); err != nil {
			return nil, "", newFailure(helmjob.BadRequest, false, "%q is no version, and no range of versions.", v)
		}
	}
	client, err := f.registryClient(u.Host)
	if err != nil {
		return nil, "", err
	}
	_, at, err := client.ValidateReference(ref, strings.TrimSpace(f.c.Version), u)
	if err != nil {
		if words := err.Error(); strings.Contains(words, "could not locate a version") ||
			strings.Contains(words, "unable to locate any tags") {
			return nil, "", newFailure(helmjob.ChartNotFound, true, "%s has no version that is %s.", what, versionConstraint(f.c.Version))
		}
		if strings.Contains(err.Error(), "mismatch") {
			return nil, "", newFailure(helmjob.BadRequest, false, "%s is not what version says: %v.", what, err)
		}
		return nil, "", unreachableFailure(what, withoutURL(err))
	}
	name := at.Host + "/" + strings.TrimPrefix(at.Path, "/")
	f.log.Info("fetching the chart", "from", name)
	pulled, err := client.Pull(name)
	if err != nil {
		if strings.Contains(err.Error(), "manifest does not contain") || strings.Contains(err.Error(), "could not load config") {
			return nil, "", newFailure(helmjob.InvalidChart, true,
				"What lies at %s is no chart, but something else, such as a container's image.", name)
		}
		return nil, "", unreachableFailure("the chart "+name, withoutURL(err))
	}
	if pulled.Chart == nil || len(pulled.Chart.Data) > helmjob.MaxArchive {
		return nil, "", newFailure(helmjob.InvalidChart, true, "What lies at %s is no chart, or larger than 100 MiB.", name)
	}
	return pulled.Chart.Data, name, nil
}

// registryClient returns a client for registries. It uses the request's credentials, and never those of the machine's
// users.
func (f *fetcher) registryClient(host string) (*registry.Client, error) {
	credential := func(context.Context, string) (auth.Credential, error) { return auth.EmptyCredential, nil }
	if len(f.c.DockerConfig) > 0 {
		store, err := credentials.NewMemoryStoreFromDockerConfig(f.c.DockerConfig)
		if err != nil {
			return nil, newFailure(helmjob.BadRequest, false, "The dockerRegistrySecret holds no docker configuration: its .dockerconfigjson "+
				"cannot be read.")
		}
		credential = credentials.Credential(store)
	}
	if f.c.Username != "" {
		fromConfig := credential
		credential = func(ctx context.Context, asking string) (auth.Credential, error) {
			c, err := fromConfig(ctx, asking)
			if err != nil || c != auth.EmptyCredential || (asking != host && !f.c.PassCredentialsAll) {
				return c, err
			}
			return auth.Credential{Username: f.c.Username, Password: f.c.Password}, nil
		}
	}
	options := []registry.ClientOption{
		registry.ClientOptHTTPClient(f.client), registry.ClientOptWriter(io.Discard),
		registry.ClientOptCredentialsFile(absentPath + "/registry.json"),
		registry.ClientOptAuthorizer(auth.Client{Client: f.client, Credential: credential, Cache: auth.NewCache()}),
	}
	if f.c.PlainHTTP {
		options = append(options, registry.ClientOptPlainHTTP())
	}
	client, err := registry.NewClient(options...)
	if err != nil {
		return nil, newFailure(helmjob.Failed, true, "The client for registries cannot be made: %v.", err)
	}
	return client, nil
}

// withoutURL removes the URL from an error of net/http, because the message has it already.
func withoutURL(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}
