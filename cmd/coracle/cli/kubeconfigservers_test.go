// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"
	"testing"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestKubeconfigOfAllServers(t *testing.T) {
	https := "https"
	slice := func(name string, port int32, addresses ...string) *discoveryv1.EndpointSlice {
		s := &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"}},
			Ports: []discoveryv1.EndpointPort{{Name: &https, Port: &port}}}
		for _, a := range addresses {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a}})
		}
		return s
	}
	away := slice("kubernetes-ipv4-8443", 8443, "10.0.0.8")
	away.Endpoints[0].Conditions.Ready = new(false)
	urls, err := serverURLs(t.Context(), fake.NewClientset(slice("kubernetes", 6443, "10.0.0.5", "10.0.0.6"), slice("kubernetes-ipv6-7443", 7443, "fd00::7"), away))
	if want := "[https://10.0.0.5:6443 https://10.0.0.6:6443 https://[fd00::7]:7443]"; err != nil || fmt.Sprint(urls) != want {
		t.Fatalf("%v, %v, want %s", urls, err, want)
	}
	c := api.NewConfig()
	c.Clusters["site"], c.AuthInfos["site"] = &api.Cluster{Server: "https://10.0.0.5:6443", TLSServerName: "127.0.0.1", CertificateAuthorityData: []byte("ca")}, &api.AuthInfo{ClientKeyData: []byte("key")}
	c.Contexts["site"], c.CurrentContext = &api.Context{Cluster: "site", AuthInfo: "site"}, "site"
	addContexts(c, urls)
	if len(c.Contexts) != 4 || len(c.AuthInfos) != 1 || c.CurrentContext != "site" || c.Clusters["site"].Server != "https://10.0.0.5:6443" || c.Clusters["site"].TLSServerName != "127.0.0.1" {
		t.Errorf("%+v", c)
	}
	third := c.Contexts["site-3"]
	if third == nil || third.AuthInfo != "site" || c.Clusters[third.Cluster].Server != urls[2] || c.Clusters[third.Cluster].TLSServerName != "" || string(c.Clusters[third.Cluster].CertificateAuthorityData) != "ca" {
		t.Errorf("%+v", third)
	}
	for server, want := range map[string]string{"": "https://10.0.0.5:6443 127.0.0.1", "https://board.example.com:6443": "https://board.example.com:6443 "} {
		adapted := testenv.Must(adaptKubeconfig(c, "", server))(t)
		testenv.Equal(t, adapted.Clusters["site"].Server+" "+adapted.Clusters["site"].TLSServerName, want, "with the address %q:", server)
	}
}
