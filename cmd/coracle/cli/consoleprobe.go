// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"k8s.io/client-go/rest"

	"github.com/coracle-k8s/coracle/internal/status"
)

const (
	// probeTimeout is the timeout of the request to the cluster, without the time that a login program takes.
	probeTimeout = 10 * time.Second
	// loginTimeout is the time after which a line says that the login program still runs.
	loginTimeout = 5 * time.Second
)

// noStdin is the error that a login program of the kubeconfig gets when it reads from the terminal.
const noStdin = "coracle console reads the terminal itself. Log in by coracle kubectl get namespaces first, if the program saves the login"

// probeConsole sends one request to the cluster before a browser is opened. It fails when the credentials are not
// valid, when the address belongs to another cluster, and when the operator has disabled the console. A cluster that
// does not answer is no failure: the pages say so, and work once the cluster answers. After the given time, a line says
// what is waited for.
func (a *App) probeConsole(ctx context.Context, config *rest.Config, current string, patience time.Duration) error {
	// A place for one: the goroutine ends even after this function has returned.
	answered := make(chan error, 1)
	go func() { answered <- askForConsole(ctx, config, current, probeTimeout) }() // a login program cannot be cancelled
	slow := time.NewTimer(patience)
	defer slow.Stop()
	for {
		select {
		case err := <-answered:
			if silent, ok := errors.AsType[unresponsiveCluster](err); ok {
				fmt.Fprintf(a.Stdout, "The cluster of context %s does not answer at the moment: %v. The console waits for it.\n", current,
					silent.error)
				return nil
			}
			return err
		case <-slow.C:
			if config.ExecProvider != nil {
				fmt.Fprintf(a.Stdout, "Waiting for %s, the login program of context %s. Ctrl-C ends this.\n", config.ExecProvider.Command,
					current)
			} else {
				fmt.Fprintf(a.Stdout, "Waiting for the cluster of context %s. Ctrl-C ends this.\n", current)
			}
		case <-ctx.Done():
			return fmt.Errorf("waiting for the cluster: %w", context.Cause(ctx))
		}
	}
}

// unresponsiveCluster wraps the error of a cluster that did not answer.
type unresponsiveCluster struct{ error }

// answerWithin bounds requests in time, with the first bytes of their answers. It is below the transport that runs a
// login program, which may take as long as a user needs.
type answerWithin struct {
	http.RoundTripper
	timeout time.Duration
}

func (t answerWithin) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithTimeout(r.Context(), t.timeout)
	defer cancel()
	answer, err := t.RoundTripper.RoundTrip(r.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, 4096))
	answer.Body = io.NopCloser(bytes.NewReader(body))
	return answer, err
}

func askForConsole(ctx context.Context, config *rest.Config, current string, within time.Duration) error {
	config = rest.CopyConfig(config)
	config.Wrap(func(next http.RoundTripper) http.RoundTripper { return answerWithin{next, within} })
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return fmt.Errorf("using the credentials of context %s: %w", current, err)
	}
	base, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return fmt.Errorf("the address of the API: %w", err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, base.JoinPath(status.ConsoleSettingPath).String(), nil)
	if err != nil {
		return fmt.Errorf("making a request: %w", err)
	}
	answer, err := client.Do(r)
	var foreign *tls.CertificateVerificationError
	if sending, ok := errors.AsType[*url.Error](err); ok {
		err = sending.Err // without the URL, which is of no use to a user
	}
	switch {
	case errors.As(err, &foreign):
		return fmt.Errorf("the server of context %s is not the one of the kubeconfig, or a clock is wrong: %w", current, foreign)
	case err != nil && strings.Contains(err.Error(), "getting credentials"): // client-go marks this error by its text only
		return fmt.Errorf("the login program of context %s: %w", current, err)
	case err != nil:
		return unresponsiveCluster{err}
	}
	defer answer.Body.Close()
	switch answer.StatusCode {
	case http.StatusUnauthorized:
		return fmt.Errorf("the cluster does not accept the credentials of context %s: they have expired, or belong to another cluster",
			current)
	case http.StatusOK:
	default: // a cluster that is not coracle's, or one whose operator removed the role
		return nil
	}
	var c status.Console
	if err := json.NewDecoder(answer.Body).Decode(&c); err == nil && c.Disabled {
		return errors.New("the console is disabled in this cluster: its servers were started with --disable console. kubectl works as before")
	}
	return nil
}
