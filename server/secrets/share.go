// SPDX-License-Identifier: Apache-2.0

package secrets

import (
	"fmt"
	"log/slog"

	"github.com/coracle-k8s/coracle/internal/version"
	"github.com/coracle-k8s/coracle/raftstore"
	"github.com/coracle-k8s/coracle/server/encryption"
)

// hashSince is the protocol from which on every server says with which keys it comes (internal/version): one that says
// nothing is of an earlier one, and is let in as long as this program and that one can be in one cluster.
const hashSince = 2

// mayComeWithout says whether a server may be let in that does not say with which keys it comes.
func mayComeWithout(understands func(protocol int) bool) bool { return understands(hashSince - 1) }

// KeysShare stands for the keys that encrypt Secrets, for the server that takes this one into the store.
func KeysShare(credDir string, log *slog.Logger) string {
	print, err := encryption.Fingerprint(credDir)
	switch {
	case err != nil:
		log.Error("the encryption keys cannot be compared with the other servers'", "error", err)
		return "unreadable" // which no server has
	case print == "":
		return "none" // nothing is what earlier versions say
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
	switch own := KeysShare(credDir, log); {
	case share == "" && !mayComeWithout(version.Understands):
		still()
		return nil, fmt.Errorf("it does not say with which keys it encrypts Secrets, as every server does from protocol %d on: update "+
			"coracle there", hashSince)
	case share != "" && share != own:
		still()
		return nil, fmt.Errorf("%w: the key that encrypts Secrets is another one than that which this server got when it asked to join, "+
			"since it was replaced meanwhile. It fetches the "+
			"present one by itself, with its --server and --token. If it cannot, nothing is lost: stop it, remove the folder server in "+
			"its data directory, and start it again, so that it joins again", raftstore.ErrShare)
	}
	return still, nil
}
