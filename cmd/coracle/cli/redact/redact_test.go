// SPDX-License-Identifier: Apache-2.0

package redact_test

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/cmd/coracle/cli/redact"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// planted is a secret of no known form: what masks it is its place.
const planted = "plum-Tree 9"

// word is one without a space, for places that end at a space.
const word = "plumtree"

const pem = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIplumtree0000000000000000000000000000000000000000000000000\nplumtree==\n-----END EC PRIVATE KEY-----"

// forms are texts that programs print. What stands before and behind § is kept; the secrets have plum in them.
var forms = []struct{ name, text, kept string }{
	{"password of a query", "dial failed password=plumtree host=db", "host=db"},
	{"password with a comma", "dial failed password=a,plumtree host=db", "host=db"},
	{"password in quotes", `dial failed password="plum-Tree 9" host=db`, "host=db"},
	{"password in single quotes", `host=db password='plum-Tree 9' port=1`, "port=1"},
	{"capitals", "MYSQL_ROOT_PASSWORD=plumtree HOME=/root", "HOME=/root"},
	{"ODBC", "Server=db;Uid=sa;Pwd=plumtree;", "Server=db"},
	{"JSON", `{"user":"sa","password":"plum-Tree 9","port":1}`, `"port":1`},
	{"JSON with an escaped quote", `{"password":"pl\"plum-Tree 9","port":1}`, `"port":1`},
	{"JSON with spaces", `{"token" : "plumtree", "port": 1}`, `"port": 1`},
	{"JSON in JSON", `msg="{\"token\":\"plum-Tree 9\",\"port\":1}"`, `\"port\":1`},
	{"JSON in JSON in JSON", `{"msg":"{\"in\":\"{\\\"apiKey\\\":\\\"plum-Tree 9\\\",\\\"port\\\":1}\"}"}`, "port"},
	{"JSON with numbers", `{"pin":4711,"password":12345678}`, "pin"},
	{"YAML", "  password: plum-Tree 9\n  port: 1\n", "port: 1"},
	{"YAML in a list", "- client-secret: plumtree\n- port: 1\n", "port: 1"},
	{"YAML block", "valuesContent: |-\n  a: plumtree\n\n  b:\n    c: plumtree\nversion: 1\n", "version: 1"},
	{"YAML block in a list", "spec:\n  set:\n    a: plumtree\n  version: 1\n", "version: 1"},
	{"YAML list of arguments", "args:\n- --plain\n- plumtree\nimage: nginx\n", "image: nginx"},
	{"YAML block in the journal", "2026-01-02T03:04:05+00:00 board coracle[12]: token: |\n2026-01-02T03:04:05+00:00 board coracle[12]:   plumtree\n2026-01-02T03:04:05+00:00 board coracle[12]: next", "next"},
	{"YAML of an environment", "env:\n- name: A\n  value: plumtree\n- name: B\n  value: plum-Tree 9\nimage: nginx\n", "image: nginx"},
	{"flag", "running mysqld --password plumtree --port 1", "--port 1"},
	{"flag with an equals sign", "running mysqld --root-password=plumtree --port 1", "--port 1"},
	{"flag of Coracle", "coracle server --snapshot-s3-secret-key plumtree --snapshot-s3-bucket b", "--snapshot-s3-bucket b"},
	{"flags in a list", `["mysqld", "--password", "plumtree", "--port"]`, "--port"},
	{"flags in Go's form", `[]string{"mysqld", "--password", "plumtree", "--port"}`, "--port"},
	{"curl's user", "curl -u admin:plumtree http://db/", "http://db/"},
	{"arguments", `container "a" args=[sh -c plumtree] restarts=1`, "restarts=1"},
	{"command in JSON", `{"command":["sh","-c","plum-Tree 9"],"image":"nginx"}`, `"image":"nginx"`},
	{"environment in the runtime's form", `{"env":["A=plumtree","B=plum-Tree 9"],"cwd":"/"}`, `"cwd":"/"`},
	{"environment in Go's form", `Env:[]v1.EnvVar{v1.EnvVar{Name:"A", Value:"plum-Tree 9", ValueFrom:(*v1.EnvVarSource)(nil)}}, Image:"nginx"`, `Image:"nginx"`},
	{"environment in CRI's form", `Envs:[]*KeyValue{&KeyValue{Key:A,Value:plumtree,},&KeyValue{Key:B,Value:plumtree,},},Image:nginx`, ""},
	{"environment of a unit", `Environment="CORACLE_TOKEN=plumtree" "B=plumtree"`, ""},
	{"name and value", `{"name":"DB_PASSWORD","value":"plum-Tree 9"},{"name":"A"}`, `{"name":"A"}`},
	{"Secret in JSON", `{"kind":"Secret","data":{"a":"cGx1bXRyZWU=","b":"plumtree"},"type":"Opaque"}`, `"type":"Opaque"`},
	{"Secret in Go's form", `Data:map[string][]uint8{"a":[]uint8{0x70, 0x6c}, "b":"plum-Tree 9"}, Type:"Opaque"`, `Type:"Opaque"`},
	{"Secret as text", `stringData:map[a:plumtree b:plumtree] type:Opaque`, "type:Opaque"},
	{"header", "GET / Authorization: Bearer plumtree", "GET /"},
	{"header of basic authentication", "Authorization: Basic cGx1bTp0cmVl", "Authorization"},
	{"header in Go's form", "headers map[Accept:[*/*] Authorization:[Bearer plumtree] Host:[db]]", "Host:[db]"},
	{"header of curl", `curl -H 'Authorization: Token plumtree' http://db/`, "http://db/"},
	{"cookie", "Cookie: a=plumtree; b=plumtree", "Cookie"},
	{"X-Auth-Token", "X-Auth-Token: plumtree", "X-Auth-Token"},
	{"bearer in a sentence", "the request with bearer plumtree was refused", "was refused"},
	{"digest", `Digest username="a", realm="b", response="plumtree"`, ""},
	{"URL", "cannot reach https://admin:plumtree@db.example.com:5000/v2/", "@db.example.com:5000/v2/"},
	{"URL with a slash and an at sign in the password", "postgres://admin:plum/tr@ee@db:5432/a?sslmode=off", "@db:5432/a?sslmode=off"},
	{"URL with a token as user", "https://plumtree@git.example.com/x.git", "@git.example.com/x.git"},
	{"URL with a signature", "GET https://s3/b?X-Amz-Credential=plumtree&X-Amz-Signature=plumtree", "https://s3/b"},
	{"URL with a token", "ws://db/x?token=plumtree", "ws://db/x"},
	{"redis without a user", "redis://:plumtree@cache:6379/0", "@cache:6379/0"},
	{"DSN without a scheme", "open admin:plumtree@tcp(db:3306)/a failed", "@tcp(db:3306)/a failed"},
	{"AMQP in quotes", `url="amqp://u:plumtree@mq/%2f" try=1`, "try=1"},
	{"PEM", pem + "\nnext", "next"},
	{"PEM in one line", `key="` + strings.ReplaceAll(pem, "\n", `\n`) + `" next`, "next"},
	{"PEM in the journal", "j coracle[1]: " + strings.ReplaceAll(pem, "\n", "\nj coracle[1]: ") + "\nnext", "next"},
	{"rest of PEM", pem[40:] + "\nnext", "next"},
	{"PEM without an end", pem[:90] + "\nnext", "next"},
	{"PEM in base64", "client-key-data: " + base64.StdEncoding.EncodeToString([]byte(pem)) + "\nnext", "next"},
	{"token of Kubernetes", "token eyJhbGciOiJSUzI1NiIsImtpZCI6InBsdW0ifQ.eyJwbHVtdHJlZSI6MX0.plumtree_x was refused", "was refused"},
	{"token to join", "coracle agent --server https://a:6443 with CRC10123456789abcdef0123456789abcdef::server:plumtree now", "now"},
	{"token of k3s", "K10123456789abcdef0123456789abcdef::node:plumtree now", "now"},
	{"bootstrap token", "joins with abcdef.0123456789plumtr now", "now"},
	{"Secret key of S3", "secret_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYplumtree now", "now"},
	{"random word", "unexpected wJalrXUtnFEMIK7MDENGbPxRfiCYplumtree now", "now"},
	{"encoded word", "unexpected cGx1bS1UcmVlIDkgcGx1bS1UcmVl= now", "now"},
	{"identity of age", "AGE-SECRET-KEY-1QQQQPLUMTREEQQQQQQ now", "now"},
	{"login of a registry", `{"auths":{"ghcr.io":{"auth":"cGx1bTp0cmVl"}}} now`, "now"},
	{"registries.yaml", "configs:\n  ghcr.io:\n    auth:\n      username: plumtree\n      password: plumtree\nmirrors: {}\n", "mirrors: {}"},
	{"identity token", "identitytoken: plumtree", ""},
	{"kubeconfig", "users:\n- name: admin\n  user:\n    token: plumtree\n    client-key-data: plumtree\nkind: Config\n", "kind: Config"},
	{"CIFS", "mount -o username=a,password=plumtree //nas/b /mnt", "/mnt"},
	{"Slack", "POST https://hooks.slack.com/services/T0/B0/plumtree 404", "404"},
	{"sentence", `the password "plumtree" was refused`, "was refused"},
	{"sentence without quotes", "the password is plumtree now", "now"},
	{"name of two words", "the API key: plumtree now", "now"},
	{"XML", "<user>sa</user><dbPassword>plum-Tree 9</dbPassword>", "<user>sa</user>"},
	{"encoded URL", "GET /login?next=%2F%3Ftoken%3Dplumtree HTTP/1.1", "HTTP/1.1"},
	{"mysql's flag", "running mysqldump -usa -pplumtree db", "mysqldump"},
	{"docker's login", "docker login -u sa -p plumtree ghcr.io", "ghcr.io"},
	{"hash of a password", "sa:$2y$10$plumtreeplumtreeplumtreeplumtreeplumtree: next", "next"},
	{"literal", "kubectl create secret generic a --from-literal=key=plumtree now", "now"},
	{"Secret in JSON of several lines", "{\n \"data\": {\n  \"a\": \"plumtree\"\n },\n \"type\": \"Opaque\"\n}", "Opaque"},
	{"environment in JSON of several lines", "{\n \"env\": [\n  {\n   \"name\": \"A\",\n   \"value\": \"plumtree\"\n  }\n ],\n \"image\": \"nginx\"\n}", "nginx"},
	{"applied object", `kubectl.kubernetes.io/last-applied-configuration: {"spec":{"a":"plumtree"}}`, ""},
	{"key of ACME", `{"kty":"EC","crv":"P-256","d":"xY3plumtree0123456789abcdefghijklmnopqrstuv"}`, `"kty":"EC"`},
	{"Go's struct", "{Username:sa Password:plum-Tree 9}", "Username:sa"},
	{"Helm", `helm upgrade --set a=plumtree --set-string b=plumtree --version 1`, "--version 1"},
	{"Helm's values in Go's form", `values=map[a:map[b:plumtree]] version=1`, "version=1"},
	{"values in a log", `msg="installing" values="a: plum-Tree 9\nb: 1" version=1`, "version=1"},
}

func TestSecretsAreMasked(t *testing.T) {
	var m redact.Masker
	encoded := base64.StdEncoding.EncodeToString([]byte(word))
	for _, f := range forms {
		t.Run(f.name, func(t *testing.T) {
			got := m.Text(f.text)
			for _, piece := range []string{planted, word, "plum", "PLUM", encoded, "cGx1b", "4711", "12345678"} {
				testenv.False(t, strings.Contains(got, piece), "%q is in\n%s", piece, got)
			}
			testenv.Contains(t, got, f.kept, "the masked text")
			testenv.Equal(t, m.Text(got), got, "the text masked twice is")
		})
	}
}

func TestOrdinaryTextIsKept(t *testing.T) {
	var m redact.Masker
	for _, text := range []string{
		`time=2026-01-02T03:04:05Z level=INFO msg=ready role=server node=board api=https://10.0.0.5:6443 after=1.2s`,
		`image docker.io/library/nginx:1.29@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef is there`,
		`pulled https://ghcr.io/v2/a/b@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef`,
		`key="kube-system/coredns" err="object has been modified"`,
		`W0102 03:04:05.678901   12345 reflector.go:1] failed to list *v1.Secret: secrets is forbidden`,
		`goroutine 12 [select]: github.com/coracle-k8s/coracle/cmd/coracle/cli.(*Process).run(0xc000123456, {0x1, 0x2})`,
		`	/root/go/pkg/mod/k8s.io/kubernetes@v1.37.0/pkg/kubelet/kubelet.go:1234 +0x123`,
		`pod 0b1c2d3e-4f50-6172-8394-a5b6c7d8e9f0 on /var/lib/coracle/agent/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/12/fs`,
		`container 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef exited with status 137`,
		`exec: "crun": executable file not found in $PATH`,
		`snapshot-s3-bucket = board`,
		`	/go/src/server/secrets/tokens.go:12 +0x371`,
		`data=/var/lib/coracle pid=12 kubernetes=v1.37.0`,
	} {
		testenv.Equal(t, m.Text(text), text, "the text is")
	}
}

func TestKnownValuesAreMasked(t *testing.T) {
	const value = `plum "tree"/+9`
	m := redact.New(value, "short", "")
	text := fmt.Sprintf("a %s b %s c %s d %s e short", value, base64.StdEncoding.EncodeToString([]byte(value)), `plum \"tree\"/+9`, `plum+%22tree%22%2F%2B9`)
	testenv.Equal(t, m.Text(text), "a *** b *** c *** d *** e short", "the text is")
}

// FuzzText looks for texts on which masking ends the process, or that are other ones when they are masked twice.
func FuzzText(f *testing.F) {
	for _, form := range forms {
		f.Add(form.text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var m redact.Masker
		for _, line := range strings.Split(m.Text(text), "\n") {
			testenv.False(t, strings.Contains(line, "-----END "), "a key is left in %q", line)
		}
	})
}
