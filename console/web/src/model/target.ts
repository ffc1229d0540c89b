// SPDX-License-Identifier: Apache-2.0

// What an action is done with.

import type { Kind } from "../api/kinds";

export interface Target {
  kind: Kind;
  ns: string;
  name: string;
  /** uid is the one of the object that was shown; not known in all views. */
  uid?: string;
  /** object is the whole object where the view has it. */
  object?: Record<string, any>;
}

/** MAX_LOGS is how many objects' logs are shown as one. */
export const MAX_LOGS = 20;
