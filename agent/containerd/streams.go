// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"net"
	"net/http"
	"sync"

	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/internal/connlimit"
	"github.com/coracle-k8s/coracle/internal/kubecompat"
)

// maxStreamless is how many connections to the port for streams there may be without a stream. The kubelet opens one
// for each exec, attach or port-forward, whose secret path begins the stream at once. Each user of the machine may
// connect.
const maxStreamless = 64

// withoutStream are the connections without a stream. They belong to the process, as its one containerd does (started).
// streamState has no other variables: the HTTP server runs already when it gets that function.
var withoutStream = struct {
	table connlimit.Table
	open  sync.Map // net.Conn → func()
}{table: connlimit.Table{Max: maxStreamless}}

// streamServerField is the path of the field with the HTTP server of streams. It opens its port itself, and containerd
// has no function that returns it.
var streamServerField = []string{"Closer", "streamServer", "server"}

// boundStreams bounds the connections to the CRI service's port for streams. Connections from before do not count: the
// port was opened in this moment, if it is open at all.
func boundStreams(cri any) error {
	server, err := kubecompat.Field[*http.Server](cri, streamServerField)
	if err != nil {
		return err
	}
	(*server).ConnState = streamState
	connlimit.Note("container-streams", &net.TCPAddr{IP: clusterconfig.Loopback.AsSlice()}, &withoutStream.table)
	return nil
}

// streamState counts a connection until its stream begins, or it ends.
func streamState(c net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		done, _ := withoutStream.table.Add(c.RemoteAddr(), func() { _ = c.Close() }) // the table is never closed
		withoutStream.open.Store(c, done)
	case http.StateHijacked, http.StateClosed:
		if done, ok := withoutStream.open.LoadAndDelete(c); ok {
			done.(func())()
		}
	}
}
