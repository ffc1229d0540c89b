// SPDX-License-Identifier: Apache-2.0

package secrets

import (
	"fmt"
	"log/slog"

	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/server/encryption"
)

// KeysShare returns a hash of the keys that encrypt Secrets, for the leader that admits this server to the store.
func KeysShare(credDir string, log *slog.Logger) string {
	print, err := encryption.Fingerprint(credDir)
	switch {
	case err != nil:
		log.Error("the encryption keys cannot be compared with the other servers'", "error", err)
		return "unreadable" // no server has this hash
	case print == "":
		return "none"
	}
	return print
}

// AdmitMember refuses a joining server whose encryption keys differ from this server's. They differ when the keys were
// replaced after the joining server received them. The keys are not replaced until release is called. The next
// replacement includes the new member.
func AdmitMember(credDir, share string, log *slog.Logger) (release func(), err error) {
	still, err := encryption.LockRotation(credDir)
	if err != nil {
		return nil, err
	}
	if share != KeysShare(credDir, log) {
		still()
		return nil, fmt.Errorf("%w: the key that encrypts Secrets was replaced after that server had asked to join. "+
			"It fetches the "+
			"new key by itself, with its --server and --token. If it cannot, nothing is lost: stop it, remove the folder server in "+
			"its data directory, and start it again, so that it joins again", raftstore.ErrShare)
	}
	return still, nil
}
