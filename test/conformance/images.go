// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	names "k8s.io/kubernetes/test/utils/image"

	"github.com/coracle-k8s/coracle/internal/imagetar"
)

// Where Debian's busybox-static and bash-static put them. bash is the shell: that busybox hands no variables with a
// dash in their name on, and prefers its applets to the programs in PATH.
const (
	busybox = "/bin/busybox"
	bash    = "/bin/bash-static"
)

// users are those that upstream's specs expect in agnhost's image.
var users = []imagetar.File{
	{Path: "/etc/passwd", Body: []byte("root:x:0:0:root:/root:/bin/sh\nuser-defined-in-image:x:1000:1000::/home:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")},
	{Path: "/etc/group", Body: []byte("root:x:0:\nuser-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\nnobody:x:65534:\n")},
	{Path: "/etc/nsswitch.conf", Body: []byte("passwd: files\ngroup: files\nhosts: files dns\n")},
	{Path: "/tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777},
	{Path: "/root", Mode: fs.ModeDir | 0o700},
	{Path: "/home", Mode: fs.ModeDir | 0o755},
	{Path: "/var/tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777},
}

// writeImages writes one archive with an image for each name that the specs ask for. What upstream makes from Alpine is
// busybox and a few programs of this machine here, with their libraries.
func writeImages(file string, images []imagetar.Image) error {
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	defer out.Close()
	if err := imagetar.Write(out, images...); err != nil {
		return err
	}
	return out.Close()
}

func desiredImages(p Programs) ([]imagetar.Image, error) {
	box, err := boxFiles()
	if err != nil {
		return nil, err
	}
	host, err := hostFiles("/usr/bin/curl", "/usr/bin/dig", "/bin/nc.openbsd", "/usr/bin/getent", "/usr/sbin/ip", "/usr/bin/ss", "/usr/bin/ipcs")
	if err != nil {
		return nil, err
	}
	porter := filepath.Join(p.Upstream, "test/images/agnhost/porter")
	agnhost := merge(box, host, []imagetar.File{
		{Path: "/agnhost", Source: p.Agnhost, Mode: 0o755}, {Path: "/agnhost-2", Link: "agnhost"}, {Path: "/uploads", Mode: fs.ModeDir | 0o755},
		{Path: "/localhost.crt", Source: filepath.Join(porter, "localhost.crt")}, {Path: "/localhost.key", Source: filepath.Join(porter, "localhost.key")},
	})
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	image := func(id names.ImageID, files []imagetar.File, entrypoint []string, cmd ...string) imagetar.Image {
		return imagetar.Image{Name: names.GetE2EImage(id), Env: env, Entrypoint: entrypoint, Cmd: cmd, Files: files}
	}
	server := merge(box, []imagetar.File{{Path: "/agnhost", Source: p.Agnhost, Mode: 0o755}})
	whole := []string{"/agnhost"}
	page := func(of string) []imagetar.File {
		html := filepath.Join(p.Upstream, "test/images", of, "html")
		// A spec looks into the image, mounted as a volume, for a file that its base has in upstream's.
		base := imagetar.File{Path: "/etc/os-release", Body: []byte("PRETTY_NAME=\"busybox, where upstream's image has Alpine Linux\"\n")}
		return merge(server, []imagetar.File{base, {Path: "/data.json", Source: filepath.Join(html, "data.json")}, {Path: "/" + of + ".jpg", Source: filepath.Join(html, of+".jpg")}})
	}
	images := []imagetar.Image{
		image(names.Agnhost, agnhost, whole, "pause"),
		image(names.AgnhostPrev, agnhost, whole, "pause"),
		image(names.GlibcDnsTesting, merge(box, host), nil, "sh"),
		image(names.BusyBox, box, nil, "sh"),
		image(names.Pause, []imagetar.File{{Path: "/agnhost", Source: p.Agnhost, Mode: 0o755}}, whole, "pause"),
		image(names.Kitten, page("kitten"), whole, "test-webserver"),
		image(names.Nautilus, page("nautilus"), whole, "test-webserver"),
		image(names.Nginx, server, whole, "test-webserver", "--port", "80"),
		image(names.NginxNew, server, whole, "test-webserver", "--port", "80"),
		image(names.Nonewprivs, merge(box, []imagetar.File{{Path: "/usr/local/bin/nnp", Source: p.Nonewprivs, Mode: fs.ModeSetuid | 0o755}}), nil, "nnp"),
		image(names.APIServer, []imagetar.File{{Path: "/sample-apiserver", Source: p.SampleAPIServer, Mode: 0o755}}, []string{"/sample-apiserver"}),
		image(names.Etcd, merge(box, []imagetar.File{{Path: "/usr/local/bin/etcd", Source: p.Etcd, Mode: 0o755}}), nil),
	}
	nonRoot := image(names.NonRoot, box, nil, "sh")
	nonRoot.User = "1234"
	return append(images, nonRoot), nil
}

// wget is Debian's busybox', which ends with a segmentation fault when it is given -T, the time that it has.
const wget = `#!/bin/bash
args=() time=
while [ $# -gt 0 ]; do
  case $1 in
    -T) time=$2; shift ;;
    *) args+=("$1") ;;
  esac
  shift
done
exec ${time:+timeout "$time"} busybox wget "${args[@]}"
`

// boxFiles is busybox with all its applets.
func boxFiles() ([]imagetar.File, error) {
	list, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list the applets of %s, of Debian's busybox-static: %w", busybox, err)
	}
	files := append([]imagetar.File{
		{Path: "/bin/busybox", Source: busybox, Mode: 0o755}, {Path: "/bin/bash", Source: bash, Mode: 0o755}, {Path: "/bin/sh", Link: "bash"},
		{Path: "/bin/wget", Body: []byte(wget), Mode: 0o755},
	}, users...)
	for applet := range strings.FieldsSeq(string(list)) {
		if !slices.Contains([]string{"busybox", "bash", "sh", "wget"}, applet) {
			files = append(files, imagetar.File{Path: "/bin/" + applet, Link: "busybox"})
		}
	}
	return files, nil
}

var library = regexp.MustCompile(`(/\S+) \(0x`)

// hostFiles are programs of this machine with the libraries that they load. A program goes to the same name in
// /usr/bin, its libraries stay where the loader looks for them.
func hostFiles(programs ...string) ([]imagetar.File, error) {
	var files []imagetar.File
	for _, program := range programs {
		name := strings.TrimSuffix(path.Base(program), ".openbsd")
		files = append(files, imagetar.File{Path: "/usr/bin/" + name, Source: program, Mode: 0o755})
		out, err := exec.Command("ldd", program).CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("find the libraries of %s: %w: %s", program, err, out)
		}
		for _, match := range library.FindAllStringSubmatch(string(out), -1) {
			files = append(files, imagetar.File{Path: match[1], Source: match[1], Mode: 0o755})
		}
	}
	return files, nil
}

// merge puts lists of files together; a later file takes the place of an earlier one of its path.
func merge(lists ...[]imagetar.File) []imagetar.File {
	var out []imagetar.File
	at := map[string]int{}
	for _, list := range lists {
		for _, f := range list {
			if i, ok := at[f.Path]; ok {
				out[i] = f
				continue
			}
			at[f.Path] = len(out)
			out = append(out, f)
		}
	}
	return out
}
