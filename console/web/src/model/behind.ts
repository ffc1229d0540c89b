// SPDX-License-Identifier: Apache-2.0

// Whether anything answers behind a Service, by its endpoint slices.

type Obj = Record<string, any>;

/** behind says how many endpoints are ready, and why there are none; null for a Service that has none by its nature. */
export function behind(service: Obj, slices: Obj[]): { text: string; tone: string } | null {
  const spec = service.spec ?? {};
  if (spec.type === "ExternalName") return null;
  const endpoints = slices.flatMap((s) => (s.endpoints ?? []) as Obj[]);
  const ready = endpoints.filter((e) => e.conditions?.ready !== false).length;
  if (ready > 0) {
    const all = endpoints.length === ready ? "" : ` of ${endpoints.length}`;
    return {
      text: `${ready}${all} ${endpoints.length === 1 ? "endpoint is" : "endpoints are"} ready.`,
      tone: ready < endpoints.length ? "passing" : "good",
    };
  }
  const selector = Object.entries((spec.selector ?? {}) as Record<string, string>)
    .map(([k, v]) => `${k}=${v}`)
    .join(", ");
  const none = "Nothing is behind this Service: ";
  if (endpoints.length > 0)
    return {
      text: none + (endpoints.length === 1 ? "its one pod is not ready." : `none of its ${endpoints.length} pods is ready.`),
      tone: "bad",
    };
  return {
    text: none + (selector ? `no running pod has ${selector}.` : "it has no selector, and nobody has made endpoints for it."),
    tone: "bad",
  };
}
