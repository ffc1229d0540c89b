// SPDX-License-Identifier: Apache-2.0

package bugreport_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coracle-k8s/coracle/cmd/coracle/cli/bugreport"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func masked(text string) string { return strings.ReplaceAll(text, "plum", "***") }

func TestArchiveHasWhatWasCollectedInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		a := bugreport.Collect(ctx, masked, "Look through it.\n", []bugreport.Section{
			{Name: "whole", About: "a whole one", Collect: func(_ context.Context, f *bugreport.Files) {
				f.Text("a.txt", "plum and pear\n")
				f.Binary("b.bin", []byte("plum"))
				f.Failed("c.txt", errors.New("no plum"))
				f.Failed("d.txt", nil)
			}},
			{Name: "stalled", About: "a stalled one", Collect: func(_ context.Context, f *bugreport.Files) {
				f.Text("a.txt", "before\n")
				<-release
				f.Text("b.txt", "too late\n")
			}},
			{Name: "broken", About: "a broken one", Collect: func(context.Context, *bugreport.Files) { panic("plum") }},
		})
		testenv.Equal(t, time.Since(began), time.Minute, "the time is")
		close(release)
		synctest.Wait()
		files := unpack(t, a)
		testenv.Equal(t, files["r/whole/a.txt"], "*** and pear\n", "the text is")
		testenv.Equal(t, files["r/whole/b.bin"], "plum", "the binary file is")
		testenv.Equal(t, files["r/stalled/a.txt"], "before\n", "the text is")
		testenv.Equal(t, len(files), 4, "the number of files is")
		for _, want := range []string{"Look through it.\n", "whole/\n  a whole one", "whole/c.txt: no ***\n", "stalled/: it was not finished in time",
			"broken/: a fault of coracle debug collect: ***\n"} {
			testenv.Contains(t, files["r/README.txt"], want, "the README")
		}
	})
}

func TestArchiveIsNotTooLarge(t *testing.T) {
	noise := make([]byte, bugreport.MaxFile)
	testenv.Must(rand.Read(noise))(t)
	a := bugreport.Collect(t.Context(), masked, "", []bugreport.Section{{Name: "a", Collect: func(_ context.Context, f *bugreport.Files) {
		for _, name := range []string{"1", "2", "3", "4", "5"} {
			f.Binary(name, noise)
		}
		f.Binary("large", append(noise, 0))
		f.Text("long", strings.Repeat("a", bugreport.MaxFile)+"end")
		f.Text("short", "short")
	}}})
	var out bytes.Buffer
	testenv.NoError(t, a.Write(&out, "r", time.Now()))
	testenv.True(t, out.Len() < 20_000_000, "the archive has %d bytes", out.Len())
	testenv.EqualSlices(t, a.Failed, []string{"a/4: the archive would be too large", "a/5: the archive would be too large",
		"a/large: it is too large, 6000001 bytes", "a/long: the archive would be too large"}, "missing is")
}

func TestOutputEndsInTime(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := bugreport.Output(ctx, exec.Command("sleep", "1000"))
	testenv.WantError(t, err, "sleep has not ended in time")
	out, err := bugreport.Output(t.Context(), exec.Command("sh", "-c", "echo out; echo complaint >&2; exit 3"))
	testenv.WantError(t, err, "exit status 3")
	testenv.Equal(t, out, "out\ncomplaint\n", "the output is")
	testenv.WantError(t, testenv.Err(bugreport.Output(t.Context(), exec.Command("no-such-program"))), "not found")
}

func unpack(t *testing.T, a *bugreport.Archive) map[string]string {
	t.Helper()
	var packed bytes.Buffer
	testenv.NoError(t, a.Write(&packed, "r", time.Now()))
	files := map[string]string{}
	z := testenv.Must(gzip.NewReader(&packed))(t)
	for r := tar.NewReader(z); ; {
		head, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		testenv.NoError(t, err)
		testenv.Equal(t, head.Mode, 0o600, "the mode of %s is", head.Name)
		files[head.Name] = string(testenv.Must(io.ReadAll(r))(t))
	}
}
