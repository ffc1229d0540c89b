// SPDX-License-Identifier: Apache-2.0

// What the overview says of use: workloads that are near a limit, or clearly above what they request.

import type { Row } from "../api/connection";
import { type Figures, NEAR, type Pair, podUse, workloadOf } from "./usage";

/** ABOVE is the share of a request from which use is clearly above it, if it is by at least LEAST. */
const ABOVE = 1.2;
const LEAST: Pair = [100, 50 * 2 ** 20];

/** UseCard is of a pod or workload. what is 0 for CPU and 1 for memory. */
export interface UseCard {
  kind: string;
  ns: string;
  name: string;
  what: 0 | 1;
  /** near is true for memory near its limit, with the share of the nearest container. */
  near: boolean;
  share: number;
  used: Pair;
}

/** useCards has one card for each workload, the most urgent first: what is near a limit, then what is most above. */
export function useCards(pods: Iterable<Row>, figures: Figures): UseCard[] {
  const sums = new Map<string, { kind: string; ns: string; name: string; used: Pair; requests: Pair; near: number; nearest: Pair }>();
  for (const pod of pods) {
    const use = podUse(pod, figures);
    if (!use) continue;
    const deployment = workloadOf(pod, "Deployment");
    const kind = deployment ? "Deployment" : (pod.owner?.kind ?? "Pod");
    const name = deployment ?? pod.owner?.name ?? pod.name;
    const key = [kind, pod.ns, name].join("/");
    let s = sums.get(key);
    if (!s) sums.set(key, (s = { kind, ns: pod.ns, name, used: [0, 0], requests: [0, 0], near: 0, nearest: [0, 0] }));
    for (const i of [0, 1] as const) {
      if (!pod.use![i]) continue; // what requests nothing is not above it
      s.used[i] += use.used[i];
      s.requests[i] += pod.use![i];
    }
    const near = use.ofLimit[1] ?? 0;
    if (near > s.near) [s.near, s.nearest] = [near, use.used];
  }
  const out: UseCard[] = [];
  for (const { kind, ns, name, used, requests, near, nearest } of sums.values()) {
    if (near >= NEAR) {
      out.push({ kind, ns, name, what: 1, near: true, share: near, used: nearest });
      continue;
    }
    const above = ([1, 0] as const).filter((i) => requests[i] && used[i] > ABOVE * requests[i] && used[i] - requests[i] >= LEAST[i]);
    // Memory is first: what is above its request there is evicted first when its node runs out.
    if (above.length) out.push({ kind, ns, name, what: above[0], near: false, share: used[above[0]] / requests[above[0]], used });
  }
  return out.sort((a, b) => Number(b.near) - Number(a.near) || b.share - a.share);
}
