// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/coracle-k8s/coracle/internal/bundle"
	"github.com/coracle-k8s/coracle/internal/stick"
)

// verifiedBundle opens a bundle that is accepted by the trusted keys. arg is a file, or the label of a stick that has
// bundles in its root: the one with the highest counter is taken, and LABEL/FILE names one. The returned name is for
// messages. done has to be called at last.
func verifiedBundle(arg string, trusted bundle.Trusted) (b *bundle.Bundle, name string, done func(), err error) {
	if label, file, _ := strings.Cut(arg, "/"); label != "" && !exists(arg) {
		sticks, err := stick.Find(label)
		switch {
		case len(sticks) == 1:
			return bundleOnStick(sticks[0], file, trusted)
		case len(sticks) > 1:
			return nil, "", nil, fmt.Errorf("%s and %s both have the label %s: unplug one of them", sticks[0].Device, sticks[1].Device, label)
		case err != nil && !isRoot() && !strings.Contains(arg, "."):
			return nil, "", nil, fmt.Errorf("looking for a stick with the label %s: %w", label, forRoot(err))
		}
		return nil, "", nil, fmt.Errorf("there is no file %s, and no stick with the label %s", arg, label)
	}
	if b, done, err = bundle.OpenFile(arg); err != nil {
		return nil, "", nil, forRoot(err)
	}
	if _, err := b.Verify(trusted); err != nil {
		done()
		return nil, "", nil, fmt.Errorf("%s is not accepted: %w", arg, err)
	}
	return b, arg, done, nil
}

// bundleOnStick opens the bundle with the highest counter that is accepted, or a given file.
func bundleOnStick(s stick.Stick, file string, trusted bundle.Trusted) (b *bundle.Bundle, name string, done func(), err error) {
	root, err := s.Open()
	if err != nil {
		return nil, "", nil, forRoot(err)
	}
	defer func() { _ = root.Close() }() // it was only read; the file that stays open keeps the stick mounted
	files := []string{file}
	if file == "" {
		if files, err = root.Files(".bundle"); err != nil {
			return nil, "", nil, err
		}
	}
	var refused []error
	for _, file := range files {
		where := s.Device + "/" + printableLine(file)
		next, end, err := openOnStick(root, file, trusted)
		switch {
		case err != nil:
			refused = append(refused, fmt.Errorf("%s is not accepted: %w", where, err))
			continue
		case b != nil && next.Index.Contents.Counter == b.Index.Contents.Counter:
			end()
			done()
			return nil, "", nil, fmt.Errorf("%s and %s have the same counter. Name one, as in %s/FILE.bundle", name, where, stick.Label)
		case b != nil && next.Index.Contents.Counter < b.Index.Contents.Counter:
			end()
			continue
		case b != nil:
			done()
		}
		b, name, done = next, where, end
	}
	switch {
	case b != nil:
		return b, name, done, nil
	case len(files) == 0:
		return nil, "", nil, fmt.Errorf("%s has no file *.bundle in its root", s.Device)
	}
	return nil, "", nil, errors.Join(refused...)
}

func openOnStick(root *stick.FS, file string, trusted bundle.Trusted) (*bundle.Bundle, func(), error) {
	f, err := root.OpenFile(file)
	if err != nil {
		return nil, nil, err
	}
	var b *bundle.Bundle
	info, err := f.Stat()
	if err == nil {
		b, err = bundle.Open(f, info.Size())
	}
	if err == nil {
		_, err = b.Verify(trusted)
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return b, func() { _ = f.Close() }, nil // nothing was written
}

// stickTimeout is how long coracle status waits for disks. One that is damaged may take minutes to say so.
const stickTimeout = 2 * time.Second

// stickNotes are the lines of coracle status about sticks with coracle's label. It reads their labels only.
func stickNotes() []string {
	found := make(chan []stick.Stick, 1) // one: the search ends also when nothing waits for it
	go func() {
		sticks, _ := stick.Find(stick.Label) // a disk that cannot be read is no stick of ours
		found <- sticks
	}()
	var notes []string
	select {
	case sticks := <-found:
		for _, s := range sticks {
			notes = append(notes, fmt.Sprintf("the stick %s has the label %s: coracle bundle import %s takes the images, charts and manifests of the "+
				"bundle on it", s.Device, stick.Label, stick.Label))
		}
	case <-time.After(stickTimeout):
	}
	return notes
}
