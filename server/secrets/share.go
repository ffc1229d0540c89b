// SPDX-License-Identifier: Apache-2.0

package secrets

import (
	"fmt"
	"log/slog"

	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/server/encryption"
)

// KeysShare stands for the keys that encrypt Secrets, for the server that takes this one into the store.
func KeysShare(credDir string, log *slog.Logger) string {
	print, err := encryption.Fingerprint(credDir)
	switch {
	case err != nil:
		log.Error("the encryption keys cannot be compared with the other servers'", "error", err)
		return "unreadable" // which no server has
	case print == "":
		return "none"
	}
	return print
}

// AdmitMember refuses a server as a member that has other encryption keys than this one: they may have been replaced
// after it got its own. Until release is called they are not, and the next replacement knows of the new member.
func AdmitMember(credDir, share string, log *slog.Logger) (release func(), err error) {
	still, err := encryption.HoldStill(credDir)
	if err != nil {
		return nil, err
	}
	if share != KeysShare(credDir, log) {
		still()
		return nil, fmt.Errorf("%w: the key that encrypts Secrets is another one than that which this server got when it asked to join, "+
			"since it was replaced meanwhile. It fetches the "+
			"present one by itself, with its --server and --token. If it cannot, nothing is lost: stop it, remove the folder server in "+
			"its data directory, and start it again, so that it joins again", raftstore.ErrShare)
	}
	return still, nil
}
