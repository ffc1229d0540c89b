// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"path/filepath"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/coracle-k8s/coracle/internal/nodecreds"
	"github.com/coracle-k8s/coracle/internal/preflight"
	"github.com/coracle-k8s/coracle/internal/status"
)

// clocksTimeout is how long a server may take to say which clocks are off.
const clocksTimeout = 5 * time.Second

// clockProblems asks a server, with the credentials of this machine's node, which clocks are off, this machine's own
// too. It returns nothing for a machine without a node, or if no server answers: other problems say that.
func clockProblems(ctx context.Context, agentDir string) []string {
	ctx, cancel := context.WithTimeout(ctx, clocksTimeout)
	defer cancel()
	rc, err := clientcmd.BuildConfigFromFlags("", nodecreds.In(filepath.Join(agentDir, "cred")).KubeletKubeconfig)
	if err != nil {
		return nil
	}
	c, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return nil
	}
	asked := time.Now()
	answer, err := c.Discovery().RESTClient().Get().AbsPath(status.ClocksPath).DoRaw(ctx)
	var r status.ClocksReport
	if err != nil || json.Unmarshal(answer, &r) != nil { // a server of an older version has no such path
		return nil
	}
	if own := status.OwnClock(&r, asked, time.Since(asked)); own != "" {
		r.Problems = append(r.Problems, own)
	}
	return r.Problems
}

// clockResults are clockProblems as results of a check.
func clockResults(ctx context.Context, agentDir string) (results []preflight.Result) {
	for _, p := range clockProblems(ctx, agentDir) {
		results = append(results, preflight.Result{Name: "clocks", Level: preflight.Warn, Found: p})
	}
	return results
}
