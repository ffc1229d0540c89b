// SPDX-License-Identifier: Apache-2.0

// Command chartserver is the chart repository and registry of tests as a process: what charts.Handler does. It is never
// part of a release. Charts come into its registry by helm push.
package main

import (
	"flag"
	"fmt"
	"net/http"
	"os"

	"github.com/coracle-k8s/coracle/test/charts"
)

func main() {
	var o charts.Options
	listen := flag.String("listen", "127.0.0.1:8879", "address and port")
	cert := flag.String("cert", "", "certificate (PEM); with -key: TLS")
	key := flag.String("key", "", "its key (PEM)")
	flag.StringVar(&o.Dir, "dir", ".", "folder of the archives (*.tgz)")
	flag.StringVar(&o.User, "user", "", "user that is asked for")
	flag.StringVar(&o.Password, "password", "", "and the password")
	flag.Parse()
	s := &http.Server{Addr: *listen, Handler: charts.Handler(o)}
	serve := s.ListenAndServe
	if *cert != "" {
		serve = func() error { return s.ListenAndServeTLS(*cert, *key) }
	}
	fmt.Fprintln(os.Stderr, "chartserver:", serve())
	os.Exit(1)
}
