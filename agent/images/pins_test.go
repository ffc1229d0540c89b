// SPDX-License-Identifier: Apache-2.0

package images_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"github.com/coracle-k8s/coracle/agent/images"
	"github.com/coracle-k8s/coracle/internal/filewatch"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// pins is a fixture whose folder runs in a bubble, without the kernel's notifications.
type pins struct {
	*fixture
	of   *images.Folder
	stop func() error // ends it, and returns its error
}

func newPins(t *testing.T) *pins {
	x := &pins{fixture: newFixture(t)}
	x.of = x.folder()
	x.of.SetNewWatcher(func() (*fsnotify.Watcher, error) { return nil, unix.EMFILE })
	return x
}

// start runs the folder, as the agent does again after an error.
func (x *pins) start() {
	ctx, cancel := context.WithCancel(x.t.Context())
	done := make(chan error, 1)
	go func() { done <- x.of.Run(ctx) }()
	x.stop = sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	synctest.Wait()
}

// pass lets time pass, and the folder be read.
func (x *pins) pass(d time.Duration) {
	time.Sleep(d) // of the bubble
	synctest.Wait()
}

// want checks which images are pinned, by their names without docker.io/library.
func (x *pins) want(when string, want ...string) {
	x.t.Helper()
	var got []string
	for name := range testenv.Must(x.store.Pinned(x.t.Context()))(x.t) {
		got = append(got, strings.TrimPrefix(name, "docker.io/library/"))
	}
	slices.Sort(got)
	testenv.EqualSlices(x.t, got, want, "%s, pinned are", when)
}

func (x *pins) remove(name string) {
	x.t.Helper()
	testenv.NoError(x.t, os.Remove(filepath.Join(x.dir, "images", name)))
}

// soonRead is until a change is noticed.
const soonRead = filewatch.Every + time.Second

// TestPinGoesWithTheArchive: an image whose archive is gone, or was replaced by one without its name, is pinned for ten
// minutes more, and then not; one that another archive has, too, stays. An archive that is back within the time changes
// nothing, and one that is back later pins its image again.
func TestPinGoesWithTheArchive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newPins(t)
		x.put("app.tar", "images app:1")
		x.put("gone.tar", "images gone:1 both:1")
		x.put("other.tar", "images both:1")
		x.start()
		defer func() { _ = x.stop() }()
		x.put("app.tar", "images app:2")
		x.remove("gone.tar")
		x.pass(images.UnpinAfter - time.Second)
		x.want("before the time is over", "app:1", "app:2", "both:1", "gone:1")
		x.pass(soonRead + time.Second)
		x.want("after it", "app:2", "both:1")
		testenv.True(t, x.store.images["docker.io/library/app:1"], "an image was removed")
		testenv.Contains(t, x.logged(), "docker.io/library/gone:1", "the log")

		x.put("gone.tar", "images gone:1 both:1")
		x.pass(soonRead)
		x.want("with the archive back", "app:2", "both:1", "gone:1")
		x.remove("gone.tar")
		x.pass(images.UnpinAfter / 2)
		x.put("gone.tar", "images gone:1 both:1")
		x.pass(images.UnpinAfter)
		x.want("with an archive that was missing for five minutes", "app:2", "both:1", "gone:1")
		x.remove("gone.tar")
		x.pass(images.UnpinAfter / 2)
		x.want("five minutes after it is gone again", "app:2", "both:1", "gone:1")
		x.pass(images.UnpinAfter/2 + soonRead)
		x.want("ten minutes after it is gone again", "app:2", "both:1")
	})
}

// TestPinStaysWhereTheFolderSaysNothing: a pin stays while the folder cannot be read, or is another disk's than when
// the image was imported; that of an image of unknown origin, such as the pause image's, stays for good; and so does
// that of an archive that is there and cannot be read.
func TestPinStaysWhereTheFolderSaysNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newPins(t)
		x.put("a.tar", "images a:1")
		x.start()
		defer func() { _ = x.stop() }()
		own := x.store.pinned["docker.io/library/a:1"]
		x.store.pinned["docker.io/library/pause:1"] = images.Origin{}
		x.store.pinned["docker.io/library/usb:1"] = images.Origin{Device: own.Device + 1, Archive: "usb.tar"}
		x.store.pinned["docker.io/library/broken:1"] = images.Origin{Device: own.Device, Archive: "broken.tar"}
		x.put("broken.tar", "rubbish")
		x.pass(2*images.UnpinAfter + soonRead)
		x.want("with a folder that has not changed", "a:1", "broken:1", "pause:1", "usb:1")

		dir := filepath.Join(x.dir, "images")
		testenv.NoError(t, os.Rename(dir, dir+".away"))
		x.pass(2 * images.UnpinAfter)
		x.want("without the folder", "a:1", "broken:1", "pause:1", "usb:1")
	})
}

// TestPinsCountFromWhenTheFolderIsRead: an archive that is missing in a folder that was not readable meanwhile counts
// as missing from then on.
func TestPinsCountFromWhenTheFolderIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newPins(t)
		x.put("a.tar", "images a:1")
		x.put("b.tar", "images b:1")
		x.start()
		x.remove("b.tar")
		x.pass(images.UnpinAfter - time.Minute)
		dir := filepath.Join(x.dir, "images")
		testenv.NoError(t, os.Rename(dir, dir+".away"))
		x.pass(time.Minute)
		testenv.Fails(t, x.stop(), "a folder that is not there was read")
		testenv.NoError(t, os.Rename(dir+".away", dir))
		x.start()
		defer func() { _ = x.stop() }()
		x.pass(images.UnpinAfter - time.Minute)
		x.want("nine minutes after the folder is back", "a:1", "b:1")
		x.pass(time.Minute + soonRead)
		x.want("ten minutes after it", "a:1")
	})
}

// TestImagesOfAnEarlierVersionGetTheirOrigin: a version without origins has pinned the images of the archives that are
// there; these get one with the next start, without another import, and go as others do.
func TestImagesOfAnEarlierVersionGetTheirOrigin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newPins(t)
		x.put("a.tar", "images a:1")
		x.importAll()
		x.store.pinned["docker.io/library/a:1"] = images.Origin{}
		x.start()
		defer func() { _ = x.stop() }()
		x.wantImports(1)
		testenv.Equal(t, x.store.pinned["docker.io/library/a:1"].Archive, "a.tar", "its origin is")
		x.remove("a.tar")
		x.pass(images.UnpinAfter + soonRead)
		x.want("ten minutes after the archive is gone")
	})
}
