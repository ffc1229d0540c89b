// SPDX-License-Identifier: Apache-2.0

package config

// For the tests from outside.
var Within, K3sHint, K3sOnly = inNetworks, k3sHint, k3sOnly
