// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/internal/slots"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestReplacedKeysStayReplaced: whichever version runs, release keys that a bundle has replaced accept nothing any
// more. A program with other keys of its own was built after that.
func TestReplacedKeysStayReplaced(t *testing.T) {
	first, second, third, other := publicKeys(t, 1, 1), publicKeys(t, 1, 2), publicKeys(t, 1, 3), publicKeys(t, 1, 4)
	var a Accepted
	take := func(built Keys, counter int64, next *Keys, signers ...int) error {
		t.Helper()
		o := small(t)
		o.Counter = counter
		if next != nil {
			o.Keys = next.Named()
		}
		b := opened(t, signed(t, o, signers...))
		trusted := testenv.Must(Trusted{Release: built}.After(a))(t)
		v, err := b.Verify(trusted)
		if err == nil {
			a = a.With(b.Index, trusted, v)
		}
		return err
	}
	testenv.NoError(t, take(first, 12, &second, 1, 2))
	testenv.WantError(t, take(first, 13, nil, 1), "keys that are not trusted here") // an undo
	testenv.NoError(t, take(first, 13, nil, 2))
	testenv.NoError(t, take(second, 14, nil, 2), "a program with the second keys")
	testenv.WantError(t, take(first, 15, &first, 1), "keys that are not trusted here") // stolen keys
	testenv.NoError(t, take(first, 16, &third, 2, 3), "a second replacement")
	for _, built := range []Keys{first, second, third} {
		testenv.NoError(t, take(built, 17, nil, 3))
		testenv.WantError(t, take(built, 17, nil, 1), "keys that are not trusted here")
		testenv.WantError(t, take(built, 17, nil, 2), "keys that are not trusted here")
	}
	testenv.NoError(t, take(other, 18, nil, 4), "a program that was built with later keys")
	testenv.WantError(t, take(Keys{}, 18, nil, 3), "no key is trusted here")
	testenv.NoError(t, take(other, 5, nil, 4), "a downgrade")
	testenv.Equal(t, a.Counter, 18, "the highest counter")
}

// TestAcceptedFollowsCommits: what lies in a slot counts from its commit on, and stays after an undo and after the slot
// is removed.
func TestAcceptedFollowsCommits(t *testing.T) {
	v := slots.Below(t.TempDir())
	one, two := strings.Repeat("1", 64), strings.Repeat("2", 64)
	link := func(name, digest string) {
		t.Helper()
		testenv.NoError(t, os.RemoveAll(filepath.Join(v.Dir, name)))
		if digest != "" {
			testenv.NoError(t, os.Symlink(digest, filepath.Join(v.Dir, name)))
		}
	}
	counter := func(want int64, when string) {
		t.Helper()
		testenv.Equal(t, testenv.Must(AcceptedBy(v))(t).Counter, want, "%s, the counter", when)
	}
	counter(0, "before there are versions")
	for digest, n := range map[string]int64{one: 3, two: 7} {
		testenv.NoError(t, os.MkdirAll(v.Slot(digest, ""), 0o755))
		testenv.NoError(t, Accepted{Counter: n}.Write(v.Slot(digest, slots.AcceptedFile)))
	}
	testenv.NoError(t, KeepAccepted(v, Accepted{}))
	_, err := os.Stat(filepath.Join(v.Dir, slots.AcceptedFile))
	testenv.ErrorIs(t, err, os.ErrNotExist, "a record of nothing")
	link("current", one)
	link("trial", two)
	counter(3, "on trial")
	testenv.NoError(t, KeepAccepted(v, Accepted{}))
	link("trial", "")
	counter(3, "refused")
	link("previous", one)
	link("current", two)
	counter(7, "committed")
	link("previous", two)
	link("current", one)
	counter(7, "after an undo")
	testenv.NoError(t, KeepAccepted(v, Accepted{}))
	link("previous", "")
	testenv.NoError(t, os.RemoveAll(v.Slot(two, "")))
	counter(7, "without the slot")
	testenv.NoError(t, KeepAccepted(v, Accepted{Counter: 5}))
	counter(7, "with an older snapshot")

	testenv.NoError(t, os.WriteFile(filepath.Join(v.Dir, slots.AcceptedFile), []byte(`{"coun`), 0o600))
	testenv.WantError(t, KeepAccepted(v, Accepted{}), "If the file is damaged, remove it")
}
