// SPDX-License-Identifier: Apache-2.0

// Label selectors as text.

/** selectorText writes a label selector as the API's query has it. */
export function selectorText(
  selector: { matchLabels?: Record<string, string>; matchExpressions?: any[] } | Record<string, string> | undefined,
): string {
  if (!selector) return "";
  const isPlain = !("matchLabels" in selector) && !("matchExpressions" in selector);
  const labels = (isPlain ? selector : (selector as any).matchLabels) ?? {};
  const parts = Object.entries(labels as Record<string, string>).map(([k, v]) => k + "=" + v);
  for (const e of (isPlain ? [] : (selector as any).matchExpressions) ?? []) {
    if (e.operator === "In" || e.operator === "NotIn") parts.push(`${e.key} ${e.operator.toLowerCase()} (${(e.values ?? []).join(",")})`);
    else parts.push(e.operator === "Exists" ? e.key : "!" + e.key);
  }
  return parts.join(",");
}
