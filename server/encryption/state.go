// SPDX-License-Identifier: Apache-2.0

package encryption

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/coracle-k8s/coracle/internal/atomicfile"
)

// Stage is the progress of a key rotation. Each stage can be repeated after a crash with the same result.
type Stage string

// These are the stages in their order. A stage begins when every API server has loaded the configuration of the one
// before.
const (
	// StagePrepare adds the new key for reading.
	StagePrepare Stage = "prepare"
	// StageReencrypt makes the new key the one that writes, and writes every object again.
	StageReencrypt Stage = "re-encrypt"
	// StageDrop removes the old keys.
	StageDrop Stage = "drop"
	// StageDone means that no rotation is under way.
	StageDone Stage = "done"
)

// state is a rotation's state on disk. The keys are only in the configuration.
type state struct {
	Stage    Stage     `json:"stage"`
	NewKey   string    `json:"newKey,omitempty"`
	Started  time.Time `json:"started,omitzero"`
	Finished time.Time `json:"finished,omitzero"`
}

// Status describes keys and rotation without secrets.
type Status struct {
	// Key is the name of the key that writes. Readable are the names of all keys that read.
	Key      string   `json:"key,omitempty"`
	Readable []string `json:"readable,omitempty"`
	// Encrypted are the resources that are encrypted when written.
	Encrypted []string `json:"encrypted,omitempty"`
	// ByHand says that an operator wrote the configuration.
	ByHand   bool      `json:"byHand,omitempty"`
	Stage    Stage     `json:"stage"`
	Started  time.Time `json:"started,omitzero"`
	Finished time.Time `json:"finished,omitzero"`
}

// ReadStatus returns the status of the files in dir.
func ReadStatus(dir string) (Status, error) {
	st, err := readState(dir)
	if err != nil {
		return Status{}, err
	}
	s := Status{Stage: st.Stage, Started: st.Started, Finished: st.Finished}
	l, err := readLayout(filepath.Join(dir, configFile))
	if errors.Is(err, errForeign) {
		s.ByHand = true
		return s, nil
	}
	if err != nil {
		return Status{}, err
	}
	s.Key, s.Readable, s.Encrypted = l.keys[0].Name, l.keyNames(), l.active
	return s, nil
}

func readState(dir string) (state, error) {
	path := filepath.Join(dir, stateFile)
	var st state
	found, err := atomicfile.ReadJSON(path, &st)
	if err == nil && !found {
		return state{Stage: StageDone}, nil
	}
	if _, unread := errors.AsType[*fs.PathError](err); unread {
		return state{}, err
	}
	if err != nil || st.Stage == "" {
		return state{}, fmt.Errorf("the state of the key rotation in %s is damaged (%v). No key was dropped. Remove that file and "+
			"rotate again: a new rotation writes everything again and drops every older key", path, err)
	}
	return st, nil
}

func (s state) write(dir string) error {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(dir, stateFile), append(data, '\n'), 0o600)
}
