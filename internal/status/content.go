// SPDX-License-Identifier: Apache-2.0

package status

import "fmt"

// Content says where layers and configurations of images came from since the process started, and how many other
// machines got from this one.
type Content struct {
	Peers   ContentCount `json:"peers"`   // from other machines of the cluster
	Outside ContentCount `json:"outside"` // from registries
	Sent    ContentCount `json:"sent"`
	// Refused counts blobs of other machines that did not have the digest that was asked for.
	Refused int64 `json:"refused,omitempty"`
}

// ContentCount is a number of blobs, and of their bytes.
type ContentCount struct {
	Blobs int64 `json:"blobs"`
	Bytes int64 `json:"bytes"`
}

// Text describes it in one line.
func (c Content) Text() string {
	text := fmt.Sprintf("from other machines %s, from registries %s, sent %s", c.Peers, c.Outside, c.Sent)
	if c.Refused > 0 {
		text += fmt.Sprintf("; refused: %d, which did not have the digest; the log names the machines", c.Refused)
	}
	return text
}

func (c ContentCount) String() string {
	noun := "blobs"
	if c.Blobs == 1 {
		noun = "blob"
	}
	return fmt.Sprintf("%s in %d %s", Bytes(c.Bytes), c.Blobs, noun)
}
