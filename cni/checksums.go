// SPDX-License-Identifier: Apache-2.0

package cni

func (s *Server) badChecksums(device string) bool { return false }
