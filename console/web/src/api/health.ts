// SPDX-License-Identifier: Apache-2.0

// The check of what is wrong, by the console's server: it reads whole objects, and answers with what is wrong of them.

import { send } from "./client";

/** Finding is what is wrong with an object. */
export interface Finding {
  /** path is the one of the list that has the object. */
  path: string;
  ns?: string;
  name: string;
  uid: string;
  created?: string;
  /** what is a word for it, for which there is a sentence. */
  what: string;
  about?: string;
  /** text is Kubernetes' own words. */
  text?: string;
  have?: number;
  want?: number;
  passing?: boolean;
  /** selector is the labels of the pods that the object needs. */
  selector?: Record<string, string>;
}

/** CheckedKind is how a list was read. */
export interface CheckedKind {
  path: string;
  objects: number;
  ready?: boolean;
  more?: boolean;
  code?: number;
  error?: string;
}

export interface HealthAnswer {
  findings: Finding[];
  kinds: CheckedKind[];
  full?: boolean;
}

/** checkHealth checks the objects of some lists. */
export function checkHealth(paths: string[]): Promise<HealthAnswer> {
  return send<HealthAnswer>("POST", "/health", { paths });
}
