//go:build bench

// SPDX-License-Identifier: Apache-2.0

package benchnet

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/coracle-k8s/coracle/ingress/table"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// Each proxy has its defaults, and besides: no access log; the same headers for backends; connections to backends that
// stay; and as many requests on a connection as come, so that no load ends connections. The route /p2 of the first host
// leads to one of two other hosts' endpoints, by the number of changes.

// target is the host whose endpoints a route has.
func target(host, path, change int) int {
	if host == 0 && path == 2 {
		return 1 + change%2
	}
	return host
}

// backends answers at all endpoints.
func (l *proxyLab) backends() {
	l.write("backend.conf", fmt.Sprintf(`daemon off; worker_processes 1; pid %[1]s/backend.pid; error_log stderr; user root;
events { worker_connections 4096; }
http {
  access_log off; default_type text/plain; keepalive_requests 1000000000; client_body_temp_path %[1]s/b1; proxy_temp_path %[1]s/b2; fastcgi_temp_path %[1]s/b3;
  uwsgi_temp_path %[1]s/b4; scgi_temp_path %[1]s/b5;
  server { listen %[2]d; location / { return 200 %[3]q; } }
}
`, l.inside, backendPort, strings.Repeat("x", bodyKB<<10)))
	l.begin(&webProxy{}, "backend", l.foreign("/usr/sbin/nginx", "-c", l.inside+"/backend.conf"))
	eventually(l.t, "the backend answers", func() error { return ask(backendPort, hostName(0)) })
}

// coracle starts our proxy as the agent does, and hands it the table.
func (l *proxyLab) coracle(p *webProxy) {
	t := l.t
	socket := filepath.Join(t.TempDir(), "control")
	control := testenv.Must(net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"}))(t)
	defer control.Close()
	control.SetUnlinkOnClose(false)
	cmd := exec.Command(built(t, "coracle-ingress", "github.com/coracle-k8s/coracle/cmd/coracle-ingress"))
	cmd.Env = []string{table.EnvNames + "=ingress/http,ingress/https," + table.ControlName, table.EnvUser + "=61080", "GOMEMLIMIT=192MiB"}
	file := func(l interface{ File() (*os.File, error) }) {
		f := testenv.Must(l.File())(t)
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	for _, port := range []int{p.http, p.tls} {
		listener := testenv.Must(net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}))(t)
		file(listener)
		_ = listener.Close()
	}
	file(control)
	l.begin(p, "coracle", cmd)
	for _, f := range cmd.ExtraFiles {
		_ = f.Close()
	}
	conn := testenv.Must(net.Dial("unix", socket))(t)
	t.Cleanup(func() { _ = conn.Close() })
	out, in := json.NewEncoder(conn), bufio.NewReader(conn)
	send := func(changes []table.Change) error {
		for _, c := range append(changes, table.Change{Commit: true}) {
			if err := out.Encode(c); err != nil {
				return err
			}
		}
		var answer table.Response
		line, err := in.ReadBytes('\n')
		if err == nil {
			err = json.Unmarshal(line, &answer)
		}
		if err == nil && len(answer.Problems) > 0 {
			err = fmt.Errorf("the proxy says: %v", answer.Problems)
		}
		return err
	}
	have := table.Sections{}
	p.change = func(n int) error {
		want, err := l.sections(n)
		if err == nil {
			err = send(table.Diff(have, want))
		}
		have = want
		return err
	}
	testenv.NoError(t, p.change(0))
}

// sections are the table after so many changes.
func (l *proxyLab) sections(change int) (table.Sections, error) {
	chain, err := os.ReadFile(l.files.Cert)
	if err != nil {
		return nil, err
	}
	key, err := os.ReadFile(l.files.Key)
	if err != nil {
		return nil, err
	}
	s := table.Sections{}
	certificate := table.CertificateKey("default", "site")
	if err := s.Put(certificate, table.Certificate{Chain: string(chain), Key: string(key)}); err != nil {
		return nil, err
	}
	for host := range hosts {
		h := table.Host{Certificate: certificate}
		for path := range 3 {
			h.Routes = append(h.Routes, table.Route{
				Path: fmt.Sprint("/p", path), Kind: table.PathPrefix, Object: fmt.Sprint("ingress/default/site-", host),
				Backends: []table.Backend{{Namespace: "default", Service: fmt.Sprint("site-", target(host, path, change)), Port: "80"}},
			})
		}
		if err := s.Put(table.HostKey(table.SiteIngress, hostName(host)), h); err != nil {
			return nil, err
		}
		b := table.Backend{Namespace: "default", Service: fmt.Sprint("site-", host), Port: "80"}
		if err := s.Put(b.Key(), table.Endpoints{Addresses: endpoints(host)}); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// nginx starts nginx with a server for each host.
func (l *proxyLab) nginx(p *webProxy) {
	configure := func(change int) {
		var b strings.Builder
		fmt.Fprintf(&b, `daemon off; worker_processes auto; pid %[1]s/nginx.pid; error_log stderr; user root;
events { worker_connections 4096; }
http {
  access_log off; keepalive_requests 1000000000; client_body_temp_path %[1]s/n1; proxy_temp_path %[1]s/n2; fastcgi_temp_path %[1]s/n3; uwsgi_temp_path %[1]s/n4;
  scgi_temp_path %[1]s/n5; ssl_certificate %[1]s/site.crt; ssl_certificate_key %[1]s/site.key; server_names_hash_bucket_size 128;
  proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $host; proxy_set_header X-Real-IP $remote_addr;
  proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Host $host; proxy_set_header X-Forwarded-Proto $scheme;
`, l.inside)
		for host := range hosts {
			e := endpoints(host)
			fmt.Fprintf(&b, "  upstream u%d { server %s; server %s; keepalive 64; keepalive_requests 1000000000; }\n", host, e[0], e[1])
		}
		for host := range hosts {
			fmt.Fprintf(&b, "  server { listen 127.0.0.1:%d; listen 127.0.0.1:%d ssl http2; server_name %s;", p.http, p.tls, hostName(host))
			for path := range 3 {
				fmt.Fprintf(&b, " location /p%d/ { proxy_pass http://u%d; }", path, target(host, path, change))
			}
			b.WriteString(" }\n")
		}
		b.WriteString("}\n")
		l.write("nginx.conf", b.String())
	}
	configure(0)
	l.begin(p, "nginx "+l.version("/usr/sbin/nginx", "-v"), l.foreign("/usr/sbin/nginx", "-c", l.inside+"/nginx.conf"))
	p.change = func(n int) error { configure(n); return syscall.Kill(p.pid, syscall.SIGHUP) }
}

// haproxy starts HAProxy, whose routes are in a map.
func (l *proxyLab) haproxy(p *webProxy) {
	both := ""
	for _, name := range []string{l.files.Cert, l.files.Key} {
		text := testenv.Must(os.ReadFile(name))(l.t)
		both += string(text)
	}
	l.write("site.pem", both)
	configure := func(change int) {
		var routes, b strings.Builder
		for host := range hosts {
			for path := range 3 {
				fmt.Fprintf(&routes, "%s/p%d/ u%d\n", hostName(host), path, target(host, path, change))
			}
		}
		l.write("routes.map", routes.String())
		fmt.Fprintf(&b, `defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  option forwardfor
frontend web
  bind 127.0.0.1:%d
  bind 127.0.0.1:%d ssl crt %s/site.pem alpn h2,http/1.1
  http-request set-header X-Forwarded-Host %%[req.hdr(host)]
  http-request set-header X-Forwarded-Proto %%[ssl_fc,iif(https,http)]
  use_backend %%[base,map_beg(%s/routes.map)]
`, p.http, p.tls, l.inside, l.inside)
		for host := range hosts {
			e := endpoints(host)
			fmt.Fprintf(&b, "backend u%d\n  server a %s\n  server b %s\n", host, e[0], e[1])
		}
		l.write("haproxy.cfg", b.String())
	}
	configure(0)
	l.begin(p, "HAProxy "+l.version("/usr/sbin/haproxy", "-v"), l.foreign("/usr/sbin/haproxy", "-W", "-f", l.inside+"/haproxy.cfg"))
	p.change = func(n int) error { configure(n); return syscall.Kill(p.pid, syscall.SIGUSR2) }
}

// caddy starts Caddy, which gets changes by its own API.
func (l *proxyLab) caddy(p *webProxy) {
	configure := func(change int) string {
		var b strings.Builder
		fmt.Fprintf(&b, "{\n admin 127.0.0.1:2019\n auto_https off\n log {\n  level ERROR\n }\n servers {\n  protocols h1 h2\n }\n}\n")
		for host := range hosts {
			fmt.Fprintf(&b, "(routes-%d) {\n", host)
			for path := range 3 {
				fmt.Fprintf(&b, " handle /p%d/* {\n  reverse_proxy %s\n }\n", path, strings.Join(endpoints(target(host, path, change)), " "))
			}
			fmt.Fprintf(&b, "}\nhttp://%[1]s:%[2]d {\n import routes-%[3]d\n}\nhttps://%[1]s:%[4]d {\n tls %[5]s/site.crt %[5]s/site.key\n import routes-%[3]d\n}\n",
				hostName(host), p.http, host, p.tls, l.inside)
		}
		return b.String()
	}
	l.write("Caddyfile", configure(0))
	l.begin(p, "Caddy "+l.version("/usr/bin/caddy", "version"), l.foreign("/usr/bin/caddy", "run", "--config", l.inside+"/Caddyfile", "--adapter", "caddyfile"))
	p.change = func(n int) error {
		response, err := http.Post("http://127.0.0.1:2019/load", "text/caddyfile", strings.NewReader(configure(n)))
		if err != nil {
			return err
		}
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		if err == nil && response.StatusCode != http.StatusOK {
			err = fmt.Errorf("Caddy says %s: %s", response.Status, text)
		}
		return err
	}
}
