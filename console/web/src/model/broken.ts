// SPDX-License-Identifier: Apache-2.0

// How many objects of each kind are broken, for the menu. The overview sets it from what it has read while it is open,
// and empties it when it is left, since nobody reads on then.

import { signal } from "@preact/signals";

/** broken has a number for the id of each kind of which something is broken. */
export const broken = signal<ReadonlyMap<string, number>>(new Map());
