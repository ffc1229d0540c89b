// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/coracle-k8s/coracle/internal/config"
	"github.com/coracle-k8s/coracle/internal/convert"
	"github.com/coracle-k8s/coracle/joining/token"
)

// defaultTTL is how long a token made by token create is valid.
const defaultTTL = 24 * time.Hour

// apiTimeout is the timeout of one request to the API server.
const apiTimeout = 15 * time.Second

func tokenCommand(a *App) *cobra.Command {
	return commandGroup(&cobra.Command{
		Use: "token", GroupID: groupUse, Short: "Print, make, list, delete and replace the tokens with which machines join",
		Long: `A machine joins with a token. Each cluster has two that do not expire: the server token, which may add servers, and the agent
token, which may add nodes only. Further ones that expire are made with "coracle token create".`,
	}, tokenPrintCommand(a), tokenGenerateCommand(), tokenCreateCommand(a), tokenListCommand(a), tokenDeleteCommand(a),
		tokenRotateCommand(a))
}

func tokenPrintCommand(a *App) *cobra.Command {
	cmd := newToolCommand(a, &cobra.Command{
		Use: "print", Short: "Print the token for adding nodes or, with --server, the one for adding servers", Args: noArgs,
		Long: `Prints the token with which nodes join, or with --server the one with which servers do, and the whole line to paste on the machine that is to join. The
token alone goes to standard output, the rest to standard error: TOKEN=$(coracle token print --quiet) takes the token in a script.`,
	})
	server := cmd.Flags().Bool("server", false, "Print the token that may add servers: it can read every secret of the cluster")
	quiet := addQuiet(cmd.Command)
	return cmd.runs(func(inv *invocation) error {
		path, role := inv.tool.Paths.AgentTokenFile, "agent"
		if *server {
			path, role = inv.tool.Paths.TokenFile, "server"
		}
		tok, err := readToken(inv.tool.Paths, path)
		if err != nil {
			return err
		}
		inv.Println(tok)
		if !*quiet {
			printJoinLines(inv.ErrOrStderr(), inv.tool, role, tok.String())
		}
		return nil
	})
}

func addQuiet(cmd *cobra.Command) *bool {
	return cmd.Flags().BoolP("quiet", "q", false, "Print the token and nothing else")
}

func tokenCreateCommand(a *App) *cobra.Command {
	cmd := newToolCommand(a, &cobra.Command{
		Use: "create [ID.SECRET]", Short: "Make a token with which nodes can join until it expires", Args: cobra.MaximumNArgs(1),
	})
	ttl := cmd.Flags().Duration("ttl", defaultTTL, "How long it is valid; 0: it never expires")
	description := cmd.Flags().String("description", "", "Description of the token, for the list")
	quiet := addQuiet(cmd.Command)
	return cmd.runs(func(inv *invocation) error {
		// The tokens that the server made hold the hash of the cluster's authority.
		own, err := readToken(inv.tool.Paths, inv.tool.Paths.AgentTokenFile)
		if err != nil {
			return err
		}
		o := token.CreateOptions{TTL: *ttl, Description: *description, Now: time.Now()}
		if len(inv.args) > 0 {
			o.Token = inv.args[0]
		}
		return withClient(inv.Context(), inv.tool, func(ctx context.Context, c kubernetes.Interface) error {
			b, err := token.Create(ctx, c, o)
			if err != nil {
				return err
			}
			tok := b.Token(own.CAHash)
			inv.Println(tok)
			if !*quiet {
				printJoinLines(inv.ErrOrStderr(), inv.tool, "agent", tok.String())
			}
			return nil
		})
	})
}

func tokenGenerateCommand() *cobra.Command {
	return &cobra.Command{
		Use: "generate", Short: "Print a random token that does not exist yet, for token create", Args: noArgs,
		Long: `Prints a random token of the form that "coracle token create" takes. It asks no server and changes nothing: no machine can join with the token until
"coracle token create TOKEN" has made it on a server.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			tok, err := token.Generate()
			if err == nil {
				cmd.Println(tok)
			}
			return err
		},
	}
}

// listedToken describes a token without its secret.
type listedToken struct {
	ID          string    `json:"id"`
	Expires     time.Time `json:"expires,omitzero"`
	Description string    `json:"description,omitempty"`
	Expired     bool      `json:"expired"`
}

func tokenListCommand(a *App) *cobra.Command {
	return newToolCommand(a, &cobra.Command{
		Use: "list", Short: "List the tokens that expire", Args: noArgs,
	}).withOutput("text", "json").runsWithClient(func(ctx context.Context, c kubernetes.Interface, inv *invocation) error {
		found, err := token.List(ctx, c)
		if err != nil {
			return err
		}
		now, out := time.Now(), []listedToken{}
		for _, b := range found {
			out = append(out, listedToken{b.ID, b.Expires, b.Description, b.Expired(now)})
		}
		rows := convert.Slice(out, func(b listedToken) []string { return []string{b.ID, worksFor(b, now), b.Description} })
		return inv.print(out, func(w io.Writer) error { return printTable(w, []string{"ID", "WORKS FOR", "DESCRIPTION"}, rows) })
	})
}

func worksFor(t listedToken, now time.Time) string {
	switch {
	case t.Expires.IsZero():
		return "ever"
	case t.Expired:
		return "no more"
	}
	return formatAge(t.Expires.Sub(now))
}

func tokenDeleteCommand(a *App) *cobra.Command {
	return newToolCommand(a, &cobra.Command{
		Use: "delete ID...", Short: "Revoke tokens at once", Args: cobra.MinimumNArgs(1),
	}).runsWithClient(func(ctx context.Context, c kubernetes.Interface, inv *invocation) error {
		for _, id := range inv.args {
			if err := token.Delete(ctx, c, id); err != nil {
				return err
			}
		}
		return nil
	})
}

func tokenRotateCommand(a *App) *cobra.Command {
	cmd := newToolCommand(a, &cobra.Command{
		Use: "rotate", Short: "Replace the token for servers or, with --agent, the one for nodes, on all servers", Args: noArgs,
		Long: `Replaces the cluster's server token or, with --agent, its agent token. All running servers switch to the new one, and a server that is off does
so when it starts; the old one becomes invalid, at once or after --grace. Machines that have joined need nothing. From then
on, --token and --agent-token have no effect on a server.

Snapshots are encrypted with the server token of their time: keep the old one for as long as you keep them.`,
	})
	agent := cmd.Flags().Bool("agent", false, "Replace the token for nodes")
	old := cmd.Flags().StringP("token", "t", "", "The present token; with a wrong one nothing is changed")
	next := cmd.Flags().String("new-token", "", "The new token; a random one if not given")
	grace := cmd.Flags().Duration("grace", 0, "How long the old token stays valid beside the new one")
	quiet := addQuiet(cmd.Command)
	return cmd.runs(func(inv *invocation) error {
		if *grace < 0 {
			return errors.New("--grace: it cannot be negative")
		}
		r := token.RotationRequest{Role: token.RoleServer, Old: *old, New: *next, Grace: *grace, Now: time.Now()}
		if *agent {
			r.Role = token.RoleAgent
		}
		return withStore(inv.Context(), inv.tool, func(ctx context.Context, store *clientv3.Client) error {
			tok, behind, err := a.RotateToken(ctx, store, inv.tool.Paths.ServerDir, r)
			if err != nil {
				return err
			}
			inv.Println(tok)
			if *quiet {
				return nil
			}
			note := inv.ErrOrStderr()
			if len(behind) > 0 {
				fmt.Fprintf(note, "These servers do not answer now, and switch to the new token when they do: %s\n", strings.Join(behind, ", "))
			}
			if r.Role == token.RoleServer {
				fmt.Fprintln(note, "Snapshots made so far are encrypted with the old token: keep it as long as you keep them.")
			}
			printJoinLines(note, inv.tool, string(r.Role), tok.String())
			return nil
		})
	})
}

func readToken(p config.Paths, path string) (token.Token, error) {
	text, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return token.Token{},
			fmt.Errorf("there is no token at %s: %s", path, noServer(p))
	case errors.Is(err, fs.ErrPermission):
		return token.Token{}, fmt.Errorf("this user may not read %s; use sudo", path)
	case err != nil:
		return token.Token{}, fmt.Errorf("reading the token: %w", err)
	}
	t, err := token.Parse(string(text))
	if err != nil {
		return token.Token{}, fmt.Errorf("the token in %s is damaged: %w", path, err)
	}
	return t, nil
}

// adminConfig returns a configuration with the administrator's credentials of the server on this machine.
func adminConfig(t *config.Tool) (*rest.Config, error) {
	var first error
	for _, path := range []string{t.Paths.AdminKubeconfig, t.Kubeconfig} {
		c, err := clientcmd.BuildConfigFromFlags("", path)
		if err == nil {
			c.Timeout, c.ContentType = apiTimeout, runtime.ContentTypeJSON
			return c, nil
		}
		if first == nil || errors.Is(first, fs.ErrNotExist) {
			first = err
		}
	}
	if errors.Is(first, fs.ErrPermission) {
		return nil, errors.New("only root may do this; use sudo")
	}
	return nil, fmt.Errorf("the administrator's kubeconfig of a server on this machine is needed: %w", first)
}

// withClient calls f with a client of this machine's API server.
func withClient(ctx context.Context, t *config.Tool, f func(context.Context, kubernetes.Interface) error) error {
	rc, err := adminConfig(t)
	if err != nil {
		return err
	}
	c, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return fmt.Errorf("making a client: %w", err)
	}
	if err = f(ctx, c); err != nil && strings.Contains(err.Error(), "connection refused") {
		return fmt.Errorf("%w; does the server run? See coracle status", err)
	}
	return err
}
