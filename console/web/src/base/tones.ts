// SPDX-License-Identifier: Apache-2.0

// Which cells of the server's tables are good, passing or bad news. The words are Kubernetes' own.

const GOOD = /^(Running|Ready|Active|Bound|Available|Complete|Completed|Succeeded|True|Healthy|Normal)$/;
const PASSING =
  /^(Pending|ContainerCreating|PodInitializing|Init:\d+\/\d+|Terminating|Waiting|Released|Suspended|Unknown|.*SchedulingDisabled.*|SchedulingGated)$/;
const STATUS = new Set(["Status", "Phase", "Type", "Conditions", "State", "Ready", "Available"]);

export type Tone = "" | "good" | "passing" | "bad";

export function toneOfStatus(text: string): Tone {
  if (!text || text === "<none>" || text === "<unknown>") return "";
  if (PASSING.test(text)) return "passing";
  if (GOOD.test(text)) return "good";
  return "bad";
}

export function toneOfCell(column: string, text: string): Tone {
  if (!STATUS.has(column)) return "";
  const parts = /^(\d+)\/(\d+)$/.exec(text);
  if (parts) return parts[1] === parts[2] ? "" : "passing";
  if (column === "Type") return text === "Warning" ? "bad" : "";
  if (column === "Ready" || column === "Available") return text === "False" ? "bad" : "";
  return toneOfStatus(text);
}
