// SPDX-License-Identifier: Apache-2.0

// Command load is both ends of what the ingress' scenarios send through the proxy: a server for pods, and clients that
// ask without a pause.
//
//	load serve [PORT]        answers HTTP/1.1 and HTTP/2 without TLS, echoes on websockets and on streams of gRPC
//	load clients ADDRESS...  asks at the addresses until its input ends, and says after each line of it what has happened since the line before
package main

import (
	"errors"
	"fmt"
	"os"
)

// Paths of the server.
const echoPath = "/echo"

func main() {
	err := errors.New("usage: load serve [PORT] | load clients [-rate N] [-websockets N] [-streams N] [-host NAME] ADDRESS...")
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "serve":
			err = serve(os.Args[2:])
		case "clients":
			err = clients(os.Args[2:])
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}
