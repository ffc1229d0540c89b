// SPDX-License-Identifier: Apache-2.0

package liveness

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/coracle-k8s/coracle/internal/connlimit"
)

// Protocol is the ALPN name of the connections by which one server asks another one about a node. Both ends have proved
// that they are servers (server/peertls).
//
// A question is a node's name and a line feed. The answer is one byte: a Finding.
const Protocol = "coracle-liveness/1"

const (
	// answerTimeout limits the time to answer a question.
	answerTimeout = 5 * time.Second
	// maxQuestions is the number of questions that are answered concurrently.
	maxQuestions = 256
	// maxName is the maximum length of a node's name and the line feed, in bytes.
	maxName = 254
)

// Serve answers other servers' questions until ctx is done. It returns when none is left. find is this server's own
// check of a node.
func Serve(ctx context.Context, l net.Listener, find func(ctx context.Context, node string) Finding) error {
	err := connlimit.Serve(ctx, l, maxQuestions, func(ctx context.Context, c net.Conn, _ func()) {
		ctx, cancel := context.WithTimeout(ctx, answerTimeout)
		defer cancel()
		defer context.AfterFunc(ctx, func() { _ = c.Close() })()
		if node, err := readName(c); err == nil {
			_, _ = c.Write([]byte{byte(find(ctx, node))}) // a peer that does not get it has ended, or will ask again
		}
	})
	if err != nil {
		return fmt.Errorf("waiting for other servers' questions about nodes: %w", err)
	}
	return nil
}

var errName = errors.New("no node's name")

func readName(c net.Conn) (string, error) {
	line, err := bufio.NewReaderSize(c, maxName).ReadSlice('\n')
	if err != nil {
		return "", err
	}
	if len(line) < 2 {
		return "", errName
	}
	return string(line[:len(line)-1]), nil
}

// QueryPeer asks one server about a node. It returns Silent if the server does not answer.
func QueryPeer(ctx context.Context, dial func(context.Context) (net.Conn, error), node string) Finding {
	c, err := dial(ctx)
	if err != nil {
		return Unresponsive
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	if _, err := c.Write([]byte(node + "\n")); err != nil {
		return Unresponsive
	}
	var answer [1]byte
	if _, err := c.Read(answer[:]); err != nil {
		return Unresponsive
	}
	switch f := Finding(answer[0]); f {
	case Reachable, Connected:
		return f
	}
	return Unresponsive
}
