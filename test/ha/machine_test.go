//go:build e2e

// SPDX-License-Identifier: Apache-2.0

package ha

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coracle-k8s/coracle/test/harness"
	"github.com/coracle-k8s/coracle/test/testenv"
)

// TestDelayHoldsDatagramsOfOnePort: datagrams to one port arrive later one way, as many as are not lost; others arrive
// at once.
func TestDelayHoldsDatagramsOfOnePort(t *testing.T) {
	harness.ByHand(t)
	site := harness.NewSite(t)
	a, b := site.NewMachine(), site.NewMachine()
	const delayed, prompt, by = 7000, 7001, 300 * time.Millisecond
	site.DelayDatagrams(a, b, delayed, by, 50)
	const sent = 200
	for _, tt := range []struct {
		port        int
		least, most int
		slow        bool
	}{{delayed, sent / 4, sent * 3 / 4, true}, {prompt, sent * 9 / 10, sent, false}} { // a busy kernel may drop some of its own
		in := testenv.Must(b.ListenPacket(net.JoinHostPort(b.IP, strconv.Itoa(tt.port))))(t)
		defer in.Close()
		out := testenv.Must(a.Dial(t.Context(), "udp", net.JoinHostPort(b.IP, strconv.Itoa(tt.port))))(t)
		defer out.Close()
		for range sent {
			testenv.Must(out.Write(binary.BigEndian.AppendUint64(nil, uint64(time.Now().UnixNano()))))(t)
		}
		got := 0
		for buffer := make([]byte, 100); ; got++ {
			patience := soon
			if got >= tt.least {
				patience = 2 * time.Second // the end of all that come
			}
			_ = in.SetReadDeadline(time.Now().Add(patience))
			n, _, err := in.ReadFrom(buffer)
			if err != nil {
				break
			}
			took := time.Since(time.Unix(0, int64(binary.BigEndian.Uint64(buffer[:n]))))
			testenv.Require(t, !tt.slow || took >= by, "a datagram that is to be late came after %v", took)
		}
		testenv.False(t, got < tt.least || got > tt.most, "port %d: %d of %d arrived, want %d to %d", tt.port, got, sent, tt.least, tt.most)
	}
}

// TestMachineIsCutOffAndReturnsUnchanged: a machine that is switched off is gone without a word, and is as it was, but
// for its processes, when it is switched on.
func TestMachineIsCutOffAndReturnsUnchanged(t *testing.T) {
	site := harness.NewSite(t)
	a, b := site.NewMachine(), site.NewMachine()
	harness.Eventually(t, soon, "the two machines hear one another", func() error { return hearing(t, b, a) })
	if out, err := a.Run("sh", "-c", "echo kept > /var/lib/kept; echo new > /etc/kept"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	program := a.Command(context.Background(), "sleep", "600")
	testenv.NoError(t, program.Start())
	site.Lose(b, a, 1)
	a.PowerOff()
	testenv.Fails(t, program.Wait(), "a program of a machine that is off ended well")
	testenv.Fails(t, testenv.Err(a.Dial(t.Context(), "tcp", b.IP+":1")), "a machine that is off can connect")
	testenv.False(t, hears(t, b, a), "a machine that is off answers")
	a.PowerOn()
	if out, err := a.Run("cat", "/var/lib/kept", "/etc/kept"); err != nil || out != "kept\nnew\n" {
		t.Errorf("%v, %q", err, out)
	}
	site.Cut(a, b)
	testenv.False(t, hears(t, b, a), "a link that is cut after the machine was switched on again carries")
	site.Heal()
	harness.Eventually(t, soon, "a link that was healed carries", func() error { return hearing(t, b, a) })

	for i, m := range []*harness.Machine{a, b} {
		m.OnlyIPv6(fmt.Sprintf("fd77::%d", i+2))
	}
	a.PowerOff()
	a.PowerOn()
	harness.Eventually(t, soon, "a machine without IPv4 is heard after it was switched on again", func() error { return hearing(t, b, a) })
}

// hearing is an error unless a machine hears another one.
func hearing(t *testing.T, m, other *harness.Machine) error {
	t.Helper()
	if !hears(t, m, other) {
		return fmt.Errorf("machine %d does not hear machine %d", m.Number, other.Number)
	}
	return nil
}

// hears says whether a machine hears another one's kernel refuse a connection.
func hears(t *testing.T, m, other *harness.Machine) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	_, err := m.Dial(ctx, "tcp", net.JoinHostPort(other.IP, "7"))
	return errors.Is(err, syscall.ECONNREFUSED)
}

// TestMachinesCPULimitHolds: a machine gets the processor time that it is given.
func TestMachinesCPULimitHolds(t *testing.T) {
	harness.ByHand(t)
	m := harness.NewMachine(t)
	spin := func() time.Duration {
		out := testenv.Must(m.Run("bash", "-c", "s=$SECONDS; while ((SECONDS < s + 3)); do :; done; cat /proc/$$/stat"))(t)
		fields := strings.Fields(out[strings.LastIndex(out, ")"):])
		user, _ := strconv.Atoi(fields[12])
		return time.Duration(user) * 10 * time.Millisecond
	}
	m.LimitCPU(10)
	limited := spin()
	if limited > 600*time.Millisecond { // three or four seconds are measured
		t.Errorf("with a tenth of a processor %v were used", limited)
	}
	m.LimitCPU(0)
	t.Logf("without the limit %v", spin()) // what others on this machine use may leave less than that
}
