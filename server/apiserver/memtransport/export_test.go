// SPDX-License-Identifier: Apache-2.0

package memtransport

// PipeBuffer is for the tests from outside.
const PipeBuffer = pipeBuffer

// WaitInFlight waits for the handlers of requests.
func (t *Transport) WaitInFlight() { t.inFlight.Wait() }
