// SPDX-License-Identifier: Apache-2.0

// Which kinds have a map: apart from it, since its code is loaded with the first one.

import type { Kind } from "../api/kinds";

/** MAPPED are the kinds of which there is a map. */
const MAPPED: [group: string, resources: string[]][] = [
  ["", ["services"]],
  ["apps", ["deployments", "statefulsets", "daemonsets", "replicasets"]],
];

export function hasMap(k: Kind): boolean {
  return MAPPED.some(([group, resources]) => k.group === group && resources.includes(k.resource));
}
