// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coracle-k8s/coracle/cni/wire"
	"github.com/coracle-k8s/coracle/test/testenv"
)

func TestRequestsAreReadBackOneByOne(t *testing.T) {
	var buf bytes.Buffer
	for _, command := range []string{wire.CommandAdd, wire.CommandDel} {
		testenv.NoError(t, wire.Write(&buf, wire.Request{Command: command, Config: json.RawMessage(`{"a":1}`)}))
	}
	for _, want := range []string{wire.CommandAdd, wire.CommandDel} {
		var got wire.Request
		if err := wire.Read(&buf, &got); err != nil || got.Command != want || string(got.Config) != `{"a":1}` {
			t.Errorf("got %+v, %v; want %s", got, err, want)
		}
	}
}

func TestFramingRefusesWhatIsNoMessage(t *testing.T) {
	long := binary.BigEndian.AppendUint32(nil, wire.MaxMessage+1)
	for name, data := range map[string][]byte{
		"nothing":       nil,
		"half a length": {0, 0},
		"too long":      long,
		"cut off":       {0, 0, 0, 9, '{'},
		"not JSON":      {0, 0, 0, 1, '{'},
	} {
		var got wire.Request
		testenv.Fails(t, wire.Read(bytes.NewReader(data), &got), "%s: read %+v", name, got)
	}
	testenv.Fails(t, wire.Write(&bytes.Buffer{}, strings.Repeat("x", wire.MaxMessage)), "wrote a message beyond the bound")
}

func TestCallWithoutAgentReturnsErrNoAgent(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	testenv.ErrorIs(t, testenv.Err(wire.Call(t.Context(), socket, wire.Request{})), wire.ErrNoAgent, "no socket")
	l := testenv.Must(net.Listen("unix", socket))(t)
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err == nil {
			c.Close() // an agent that dies in the middle of a call
		}
	}()
	testenv.ErrorIs(t, testenv.Err(wire.Call(t.Context(), socket, wire.Request{})), wire.ErrNoAgent, "connection closed")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		c, err := l.Accept()
		if err == nil {
			defer c.Close()
			cancel()
			_ = wire.Read(c, &wire.Request{}) // the request
			_, _ = c.Read(make([]byte, 1))    // and then the end of the connection
		}
	}()
	testenv.ErrorIs(t, testenv.Err(wire.Call(ctx, socket, wire.Request{})), wire.ErrNoAgent, "given up")
}
