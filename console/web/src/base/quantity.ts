// SPDX-License-Identifier: Apache-2.0

// Kubernetes' quantities as numbers.

const FACTOR: Record<string, number> = {
  n: 1e-9,
  u: 1e-6,
  m: 1e-3,
  "": 1,
  k: 1e3,
  M: 1e6,
  G: 1e9,
  T: 1e12,
  P: 1e15,
  E: 1e18,
  Ki: 2 ** 10,
  Mi: 2 ** 20,
  Gi: 2 ** 30,
  Ti: 2 ** 40,
  Pi: 2 ** 50,
  Ei: 2 ** 60,
};

/** quantity reads a quantity; NaN for other text. */
export function quantity(text: string | undefined): number {
  const m = /^([+-]?[0-9.]+)(?:e([+-]?\d+)|([numkMGTPE]|[KMGTPE]i)?)$/.exec(text ?? "");
  if (!m) return NaN;
  return Number(m[1]) * (m[2] ? 10 ** Number(m[2]) : FACTOR[m[3] ?? ""]);
}
