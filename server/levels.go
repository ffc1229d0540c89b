// SPDX-License-Identifier: Apache-2.0

package server

// level returns the level of the cluster.
func (s *Server) level() int { return s.o.Level }
