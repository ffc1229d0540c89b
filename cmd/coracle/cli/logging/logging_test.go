// SPDX-License-Identifier: Apache-2.0

package logging_test

import (
	"bytes"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/ipvs"
	"github.com/sirupsen/logrus"
	"k8s.io/klog/v2"

	"github.com/coracle-k8s/coracle/cmd/coracle/cli/logging"
	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// setup starts a log of which the times are off, and returns what reads it.
func setup(t *testing.T, c config.Logging) (*logging.Log, func() string) {
	t.Helper()
	t.Setenv("JOURNAL_STREAM", "8:1")
	var b bytes.Buffer
	l := testenv.Must(logging.Setup(c, &b))(t)
	t.Cleanup(func() { testenv.Check(t, l.Close()) })
	return l, func() string {
		defer b.Reset()
		return b.String()
	}
}

func expect(t *testing.T, got string, want ...string) {
	t.Helper()
	testenv.Equal(t, got, strings.Join(want, "\n")+"\n", "got")
}

func TestLinesAreFormattedWithoutControlCharacters(t *testing.T) {
	l, read := setup(t, config.Logging{})
	l.Debug("not asked for")
	l.With(logging.ComponentKey, "store").Info("became leader", "term", 2, "reason", "it is alone", "error", errors.New("none"))
	l.WithGroup("disk").Warn("two\nlines", "free", 5, slog.Group("inodes", "free", 7))
	l.Warn("clears \x1b[2J the screen", "name", "\x1b]0;title\a")
	expect(t, read(),
		`INFO  store: became leader term=2 reason="it is alone" error=none`,
		`WARN  two \ lines disk.free=5 disk.inodes.free=7`,
		`WARN  clears ?[2J the screen name="\x1b]0;title\a"`)
}

// TestLongTextsAreCut: a client whose request causes an error of many megabytes, as a patch with the same key a
// thousand times does, cannot drive all other lines out of the log files.
func TestLongTextsAreCut(t *testing.T) {
	l, read := setup(t, config.Logging{})
	long := strings.Repeat("ä", logging.MaxText)
	l.With("first", long).Error("It failed", "err", errors.New(long), "after", 3)
	kept := strings.Repeat("ä", logging.MaxText/2) + fmt.Sprintf("… (%d bytes in all)", 2*logging.MaxText)
	expect(t, read(), fmt.Sprintf("ERROR It failed first=%q err=%q after=3", kept, kept))
	l.Error(long[1:]) // half a character, and then whole ones
	if got := read(); len(got) > logging.MaxText+100 || !strings.HasSuffix(got, fmt.Sprintf("ä… (%d bytes in all)\n", 2*logging.MaxText-1)) {
		t.Errorf("a message of %d bytes: %d, …%s", len(long)-1, len(got), got[len(got)-40:])
	}
}

func TestLibrariesByDefault(t *testing.T) {
	_, read := setup(t, config.Logging{})
	klog.Info("chatter")
	klog.InfoS("chatter")
	klog.Warning("careful")
	klog.Warningf("Skipping API %s because it has no resources.", "x/v1")
	klog.Warningf("[core] [Channel #8 SubChannel #9] grpc: addrConn.createTransport failed to connect to %s", "{Addr: ...}")
	klog.ErrorS(errors.New("broken"), "It failed", "pod", "a/b")
	klog.LoggerWithName(klog.Background(), "kubelet").Error(nil, "named")
	logrus.Info("chatter")
	logrus.WithField("id", 1).Warn("careful")
	log.Print("[INFO] chatter")
	log.Print("[ERROR] plugin/kubernetes: broken")
	expect(t, read(),
		"WARN  careful",
		"ERROR It failed err=broken pod=a/b",
		"ERROR kubelet: named",
		"WARN  containerd: careful id=1",
		"ERROR plugin/kubernetes: broken")
}

// TestIPVSIsTheProxys: the library that speaks with the kernel's IPVS says by logrus that there is no modprobe, once in
// a process: so this test has one of its own.
func TestIPVSIsTheProxys(t *testing.T) {
	const child = "CORACLE_TEST_IPVS_CHILD"
	if os.Getenv(child) == "" {
		c := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestIPVSIsTheProxys$", "-test.count=1")
		c.Env = append(os.Environ(), child+"=1")
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	_, read := setup(t, config.Logging{})
	t.Setenv("PATH", t.TempDir())
	if h, err := ipvs.New(""); err == nil {
		h.Close()
	}
	if got := read(); !strings.Contains(got, "WARN  proxy: Running modprobe ip_vs failed") || strings.Contains(got, "containerd") {
		t.Errorf("got\n%s", got)
	}
}

func TestLibrariesWhenAsked(t *testing.T) {
	_, read := setup(t, config.Logging{Verbosity: 2})
	klog.V(2).Info("two")
	klog.V(3).Info("three")
	klog.V(2).InfoS("structured", "n", 1)
	log.Print("[INFO] dns")
	logrus.Info("images")
	expect(t, read(), "INFO  two", "DEBUG structured n=1", "INFO  dns", "INFO  containerd: images")
	_, read = setup(t, config.Logging{Debug: true})
	klog.Info("from klog")
	slog.Debug("ours")
	expect(t, read(), "INFO  from klog", "DEBUG ours")
}

func TestKlogIsRedirectedAgain(t *testing.T) {
	l, read := setup(t, config.Logging{})
	klog.ClearLogger() // as a library does that takes klog over
	l.RedirectKlog()
	klog.Warning("here again")
	expect(t, read(), "WARN  here again")
}

func TestHeldLinesAreReleasedOrDropped(t *testing.T) {
	l, read := setup(t, config.Logging{})
	l.Hold()
	klog.Error("cannot reach the API server yet")
	l.Info("ours is written at once")
	expect(t, read(), "INFO  ours is written at once")
	l.Release(false)
	klog.Error("after")
	expect(t, read(), "ERROR after")
	l.Hold()
	for i := range logging.MaxHeld + 5 {
		klog.Error(fmt.Sprint("line ", i))
	}
	l.Release(true)
	lines := strings.Split(strings.TrimSpace(read()), "\n")
	if len(lines) != logging.MaxHeld || lines[0] != "ERROR line 5" {
		t.Errorf("%d lines, the first is %q", len(lines), lines[0])
	}
	verbose, read := setup(t, config.Logging{Verbosity: 1})
	verbose.Hold()
	klog.Error("logged at once when the user wants more")
	expect(t, read(), "ERROR logged at once when the user wants more")
}

func TestLogFileAndStderrGetTheSame(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "coracle.log")
	l, read := setup(t, config.Logging{File: path, AlsoStderr: true})
	l.Info("hello")
	text := testenv.Must(os.ReadFile(path))(t)
	if got := read(); got != string(text) || !strings.HasSuffix(got, "Z INFO  hello\n") {
		t.Errorf("file %q, standard error %q", text, got)
	}
	testenv.Fails(t, testenv.Err(logging.Setup(config.Logging{File: "/proc/nothing/log"}, os.Stderr)), "a log file that cannot be made is accepted")
}

// The kubelet ends the process by os.Exit after these words: they must not be kept back.
func TestLastWordsAreWritten(t *testing.T) {
	l, read := setup(t, config.Logging{})
	l.Hold()
	klog.Background().Error(errors.New("no such thing"), "Some complaint")
	if got := read(); got != "" {
		t.Fatalf("written while it is held: %q", got)
	}
	klog.Background().Error(errors.New("no cgroup"), "Failed to start ContainerManager")
	expect(t, read(), `ERROR Some complaint err="no such thing"`, `ERROR Failed to start ContainerManager err="no cgroup"`)
}
