// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"compress/gzip"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/coracle-k8s/coracle/internal/imagetar"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// BoxImage is the test image: busybox and testbox.
const BoxImage = "coracle.test/box:1"

// busybox is where Debian's busybox-static puts it.
const busybox = "/bin/busybox"

var box struct {
	sync.Once
	path   string
	err    error
	output []byte
}

// Box builds test/testbox once per run and returns the program's path, readable from every machine.
func Box(t testing.TB) string {
	t.Helper()
	box.Do(func() {
		dir, err := os.MkdirTemp("", "coracle-testbox-")
		if err != nil {
			box.err = err
			return
		}
		box.path = filepath.Join(dir, "testbox")
		c := exec.Command("go", "build", "-ldflags", "-s -w", "-o", box.path, "github.com/coracle-k8s/coracle/test/testbox")
		c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOPROXY=off") // TestSuiteLeavesRunningClusterAlone builds it where no module can be had: better an error than a wait
		box.output, box.err = c.CombinedOutput()
	})
	testenv.Require(t, box.err == nil, "build testbox: %v\n%s", box.err, box.output)
	return box.path
}

// removeBox removes what Box built.
func removeBox() {
	if box.path != "" {
		_ = os.RemoveAll(filepath.Dir(box.path))
	}
}

// packing is held by the goroutine that packs the test image.
var packing sync.Mutex

// WriteBoxImage writes the test image to a docker archive, gzip'ed when the name ends in .gz. Each kind is packed once
// per run and copied: that takes as much of a processor as a machine's start, and most scenarios want several.
func WriteBoxImage(t testing.TB, path string) {
	t.Helper()
	packed := filepath.Join(filepath.Dir(Box(t)), "image.tar")
	if strings.HasSuffix(path, ".gz") {
		packed += ".gz"
	}
	packing.Lock()
	defer packing.Unlock()
	if _, err := os.Stat(packed); err != nil {
		packBoxImage(t, packed)
	}
	archive, err := os.ReadFile(packed)
	if err == nil {
		err = os.WriteFile(path+".part", archive, 0o644)
	}
	if err == nil {
		err = os.Rename(path+".part", path)
	}
	testenv.NoError(t, err)
}

func packBoxImage(t testing.TB, path string) {
	t.Helper()
	list, err := exec.Command(busybox, "--list").Output()
	testenv.Require(t, err == nil, "%s: %v (apt-get install busybox-static)", busybox, err)
	files := []imagetar.File{
		{Path: "/bin/busybox", Source: busybox, Mode: 0o755},
		{Path: "/bin/testbox", Source: Box(t), Mode: 0o755},
		{Path: "/etc/passwd", Body: []byte("root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")},
		{Path: "/tmp", Mode: fs.ModeDir | fs.ModeSticky | 0o777},
	}
	for applet := range strings.FieldsSeq(string(list)) {
		if applet != "busybox" {
			files = append(files, imagetar.File{Path: "/bin/" + applet, Link: "busybox"})
		}
	}
	writeImage(t, path, imagetar.Image{Name: BoxImage, Env: []string{"PATH=/bin"}, Cmd: []string{"/bin/sh"}, Files: files})
}

// WritePauseImage writes a sandbox image under the given name, for clusters that do not carry one.
func WritePauseImage(t testing.TB, path, name string) {
	t.Helper()
	writeImage(t, path, imagetar.Image{
		Name: name, Entrypoint: []string{"/testbox", "hold"},
		Files: []imagetar.File{{Path: "/testbox", Source: Box(t), Mode: 0o755}},
	})
}

// writeImage writes an archive whole or not at all.
func writeImage(t testing.TB, path string, image imagetar.Image) {
	t.Helper()
	out, err := os.Create(path + ".part")
	testenv.NoError(t, err)
	defer out.Close()
	if strings.HasSuffix(path, ".gz") {
		z := gzip.NewWriter(out)
		testenv.NoError(t, imagetar.Write(z, image))
		err = z.Close()
	} else {
		err = imagetar.Write(out, image)
	}
	testenv.NoError(t, err)
	testenv.NoError(t, os.Rename(path+".part", path))
}
