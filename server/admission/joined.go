// SPDX-License-Identifier: Apache-2.0

package admission

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
	"github.com/coracle-k8s/coracle/internal/clusterconfig"
	"github.com/coracle-k8s/coracle/server/roster"
)

// JoinedFile, in the server's folder, contains what a joining server was given.
const JoinedFile = "joined.json"

// Joined is the data that the cluster sent to a server that joined it.
type Joined struct {
	Settings clusterconfig.Settings `json:"settings"`
	clusterconfig.ServerSettings
	Peers []string `json:"peers"`
	// Level is the cluster's level when this server joined, 0 for the first one.
	Level int `json:"level,omitempty"`
	// Founder says that this server started the cluster. It wrote this file itself when it admitted the first other
	// server.
	Founder bool `json:"founder,omitempty"`
}

// Write writes JoinedFile into a server's folder.
func (j *Joined) Write(serverDir string) error {
	return atomicfile.WriteJSON(filepath.Join(serverDir, JoinedFile), j, 0o600)
}

// WasJoined returns what the cluster sent when the server of this folder joined. It returns nil for a server that
// started a cluster and is alone in it. The file that such a server wrote for another server is removed if the cluster
// has no other server: that one never joined, or has left.
func WasJoined(serverDir string) (*Joined, error) {
	file, j := filepath.Join(serverDir, JoinedFile), &Joined{}
	found, err := atomicfile.ReadJSON(file, j)
	if found {
		err = j.Settings.Validate()
	}
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s is damaged (%w). Nothing was changed: restore it from a backup or from another server's, then start again",
			file, err)
	case !found:
		return nil, nil
	case !j.Founder:
		return j, nil
	}
	others, err := roster.ReadPeerAddresses(serverDir)
	if err != nil || len(others) > 0 {
		return j, err
	}
	if err := os.Remove(file); err != nil {
		return nil, fmt.Errorf("removing the settings that were sent to a server that never joined: %w", err)
	}
	return nil, nil
}
