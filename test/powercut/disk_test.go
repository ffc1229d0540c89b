// SPDX-License-Identifier: Apache-2.0

package powercut

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestPowerCutLosesUnflushedWrites writes twice to the same place, flushes between, and cuts the power.
func TestPowerCutLosesUnflushedWrites(t *testing.T) {
	const size, at = 64 << 10, 8 << 10
	block := func(b byte) []byte { return bytes.Repeat([]byte{b}, blockSize) }
	for _, loss := range []Loss{{Kept: 0}, {Kept: 1}, {Kept: 0.5}, {Unit: sectorSize, Kept: 0.5}} {
		path := filepath.Join(t.TempDir(), "disk")
		testenv.NoError(t, os.WriteFile(path, make([]byte, size), 0o600))
		d := testenv.Must(OpenDisk(path))(t)
		write := func(b byte) {
			t.Helper()
			got := make([]byte, blockSize)
			testenv.NoError(t, d.Write(block(b), at))
			if err := d.Read(got, at); err != nil || !bytes.Equal(got, block(b)) {
				t.Fatalf("what was written is not read: %v", err)
			}
		}
		write('a')
		testenv.NoError(t, d.Flush())
		write('b')
		d.CutAfter(2)
		write('c')
		testenv.Fails(t, d.Write(block('d'), at), "a write went on after the cut")
		testenv.Fails(t, d.Flush(), "a flush went on after the cut")
		cached, err := d.Settle(rand.New(rand.NewPCG(1, 2)), loss)
		testenv.False(t, err != nil || cached != 3, "%d requests were in the cache, want 3: %v", cached, err)
		left := testenv.Must(os.ReadFile(path))(t)
		checkLeft(t, loss, left[at:at+blockSize])
	}
}

func checkLeft(t *testing.T, loss Loss, left []byte) {
	t.Helper()
	pieces := map[byte]int{}
	for from := 0; from < len(left); from += sectorSize {
		piece := left[from : from+sectorSize]
		pieces[piece[0]]++
		testenv.True(t, bytes.Equal(piece, bytes.Repeat(piece[:1], sectorSize)) && piece[0] >= 'a' && piece[0] <= 'd',
			"%v: half a sector", loss)
	}
	switch {
	case loss.Kept == 0 && pieces['a'] != blockSize/sectorSize, loss.Kept == 1 && pieces['d'] != blockSize/sectorSize,
		loss.Unit == 0 && len(pieces) != 1, loss.Unit == sectorSize && len(pieces) < 2:
		t.Errorf("%v: left are %v", loss, pieces)
	}
}
