// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/internal/config"
)

func kubeconfigCommand(a *App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "kubeconfig", GroupID: groupUse, Short: "Print the administrator's kubeconfig, or merge it into yours", Args: noArgs,
		Long: `Prints the kubeconfig of the cluster's administrator. A user who has it can do everything in the cluster.

  For a laptop:    sudo coracle kubeconfig --server https://board.example.com:6443 > board.yaml
  For this user:   sudo cat /etc/coracle/coracle.yaml | coracle kubeconfig --from - --merge`,
	}
	flags := addLocations(cmd)
	server := cmd.Flags().String("server", "", "Address of the API server to write into it, such as https://board.example.com:6443")
	name := cmd.Flags().String("name", "", "Name of the cluster, the user and the context in it (coracle when merging)")
	merge := cmd.Flags().Bool("merge", false, "Add it to the kubeconfig of this user (the first file of KUBECONFIG, or ~/.kube/config) "+
		"and make it current")
	from := cmd.Flags().String("from", "", "Read the kubeconfig from this file instead of the server's; - for standard input")
	all := cmd.Flags().Bool("all-servers", false, "Add a context for each server that runs now, NAME-1 and so on: any of them can be used "+
		"for everything")
	cmd.RunE = run(func(cmd *cobra.Command, _ []string) error {
		if *server != "" {
			u, err := url.Parse(*server)
			if err != nil || u.Scheme != "https" || u.Host == "" {
				return usageError{cmd, fmt.Errorf("--server: %q is not an address; write it like https://board.example.com:6443", *server)}
			}
		}
		t, err := config.LoadTool(a.sources(flags))
		if err != nil {
			return err
		}
		c, err := a.readKubeconfig(t, *from)
		if err != nil {
			return err
		}
		if *merge && *name == "" {
			*name = "coracle"
		}
		if c, err = adaptKubeconfig(c, *name, *server); err != nil {
			return err
		}
		if *all {
			err := withClient(cmd.Context(), t, func(ctx context.Context, client kubernetes.Interface) error {
				urls, err := serverURLs(ctx, client)
				addContexts(c, urls)
				return err
			})
			if err != nil {
				return err
			}
		}
		if *merge {
			return a.mergeKubeconfig(c)
		}
		text, err := clientcmd.Write(*c)
		if err != nil {
			return fmt.Errorf("writing the kubeconfig: %w", err)
		}
		_, err = cmd.OutOrStdout().Write(text)
		return err
	})
	return cmd
}

// readKubeconfig reads the kubeconfig that the server wrote, or the one that from names.
func (a *App) readKubeconfig(t *config.Tool, from string) (*api.Config, error) {
	if from == "-" {
		text, err := io.ReadAll(a.Stdin)
		if err != nil {
			return nil, fmt.Errorf("reading the kubeconfig: %w", err)
		}
		c, err := clientcmd.Load(text)
		if err != nil {
			return nil, fmt.Errorf("standard input is not a kubeconfig: %w", err)
		}
		return c, nil
	}
	paths := []string{t.Kubeconfig, t.Paths.AdminKubeconfig}
	if from != "" {
		paths = []string{from}
	}
	var first error
	for _, path := range paths {
		c, err := clientcmd.LoadFromFile(path)
		if err == nil {
			if err := api.FlattenConfig(c); err != nil { // embeds the files that it names
				return nil, fmt.Errorf("reading what %s names: %w", path, err)
			}
			return c, nil
		}
		if first == nil || errors.Is(first, fs.ErrNotExist) {
			first = err
		}
	}
	switch {
	case errors.Is(first, fs.ErrPermission):
		return nil, fmt.Errorf("this user may not read %s; use sudo", paths[0])
	case errors.Is(first, fs.ErrNotExist) && from == "":
		return nil, fmt.Errorf("there is no %s: %s", paths[0], noServer(t.Paths))
	}
	return nil, fmt.Errorf("reading the kubeconfig: %w", first)
}

// adaptKubeconfig reduces a kubeconfig to its current context. It renames the context and replaces the server's
// address, if those are given.
func adaptKubeconfig(c *api.Config, name, server string) (*api.Config, error) {
	ctx := c.Contexts[c.CurrentContext]
	if ctx == nil || c.Clusters[ctx.Cluster] == nil || c.AuthInfos[ctx.AuthInfo] == nil {
		return nil, errors.New("the kubeconfig has no current context with a cluster and a user")
	}
	name = cmp.Or(name, c.CurrentContext)
	out := api.NewConfig()
	cluster, user := c.Clusters[ctx.Cluster].DeepCopy(), c.AuthInfos[ctx.AuthInfo].DeepCopy()
	if server != "" {
		cluster.Server, cluster.TLSServerName = server, ""
	}
	cluster.LocationOfOrigin, user.LocationOfOrigin = "", ""
	out.Clusters[name], out.AuthInfos[name] = cluster, user
	out.Contexts[name] = &api.Context{Cluster: name, AuthInfo: name, Namespace: ctx.Namespace}
	out.CurrentContext = name
	return out, nil
}

// mergeKubeconfig adds the contexts of add to the user's kubeconfig and leaves all others as they are.
func (a *App) mergeKubeconfig(add *api.Config) error {
	path := ""
	if list := filepath.SplitList(getenv(a.Environ, "KUBECONFIG")); len(list) > 0 {
		path = list[0]
	} else if home := getenv(a.Environ, "HOME"); home != "" {
		path = filepath.Join(home, ".kube", "config")
	}
	if path == "" {
		return errors.New("neither KUBECONFIG nor HOME is set, so there is no file to merge into")
	}
	into, err := clientcmd.LoadFromFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		into, err = api.NewConfig(), nil
	}
	if err != nil {
		return fmt.Errorf("reading %s: %w; nothing was changed", path, err)
	}
	name := add.CurrentContext
	maps.Copy(into.Clusters, add.Clusters)
	maps.Copy(into.AuthInfos, add.AuthInfos)
	maps.Copy(into.Contexts, add.Contexts)
	into.CurrentContext = name
	text, err := clientcmd.Write(*into)
	if err != nil {
		return fmt.Errorf("writing the kubeconfig: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("making the folder of %s: %w", path, err)
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real // keeps a symbolic link, as dotfile managers make
	}
	if err := atomicfile.Write(path, text, 0o600); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	fmt.Fprintf(a.Stdout, "added the context %s to %s and made it current\n", name, path)
	return nil
}
