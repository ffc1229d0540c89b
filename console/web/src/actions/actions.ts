// SPDX-License-Identifier: Apache-2.0

// What can be done with objects, each with the kubectl command that does the same.

import { announce } from "../base/announce";
import { api, patch, reasonOf } from "../api/client";
import { confirm } from "../widgets/dialog";
import { isKind, type Kind, kindByWord, listPath, objectPath } from "../api/kinds";
import { command, commandFor } from "../model/kubectl";
import { refusal } from "../api/permissions";
import { go } from "../api/route";
import { session } from "../api/session";
import { S } from "../base/strings";
import { MAX_LOGS, type Target } from "../model/target";
import { openDialog } from "./dialogs";
import { each, nameOf } from "./each";

export interface Action {
  id: string;
  key: string;
  label: string;
  applies(k: Kind): boolean;
  /** refused is why the user may not do it; empty when it is allowed. */
  refused(t: Target): string;
  /** many actions can be done with several objects at once; the others are off when several are marked. */
  many: boolean;
  danger?: boolean;
  run(targets: Target[]): void;
}

const names = (targets: Target[]) => targets.map(nameOf);

export const ACTIONS: Action[] = [
  {
    id: "logs",
    key: "l",
    label: S.action.logs,
    applies: hasLogs,
    refused: (t) => (isKind(t.kind, "", "pods") ? refusal("get", t.kind, t.ns, t.name, "log") : ""),
    many: true,
    run: (targets) => openLogs(targets),
  },
  {
    id: "previous",
    key: "p",
    label: S.action.previous,
    applies: (k) => isKind(k, "", "pods"),
    refused: (t) => refusal("get", t.kind, t.ns, t.name, "log"),
    many: true,
    run: (targets) => openLogs(targets, { previous: "1" }),
  },
  {
    id: "shell",
    key: "s",
    label: S.action.shell,
    applies: (k) => isKind(k, "", "pods"),
    refused: (t) => refusal("create", t.kind, t.ns, t.name, "exec"),
    many: false,
    run: ([t]) => go({ view: "shell", kind: t.kind.id, ns: t.ns, name: t.name }),
  },
  {
    id: "attach",
    key: "A",
    label: S.action.attach,
    applies: (k) => isKind(k, "", "pods"),
    refused: (t) => refusal("create", t.kind, t.ns, t.name, "attach"),
    many: false,
    run: ([t]) => go({ view: "shell", kind: t.kind.id, ns: t.ns, name: t.name, params: { mode: "attach" } }),
  },
  {
    id: "debug",
    key: "b",
    label: S.action.debug,
    applies: (k) => isKind(k, "", "pods") && k.subresources.includes("ephemeralcontainers"),
    refused: (t) => refusal("patch", t.kind, t.ns, t.name, "ephemeralcontainers") || refusal("create", t.kind, t.ns, t.name, "attach"),
    many: false,
    run: ([t]) => openDialog((d) => d.debug(t)),
  },
  {
    id: "forward",
    key: "f",
    label: S.action.forward,
    applies: (k) => isKind(k, "", "pods", "services"),
    refused: (t) => {
      const pods = kindByWord("pods");
      // A server's console only shows the command.
      return pods && session.value?.mode === "loopback"
        ? refusal("create", pods, t.ns, isKind(t.kind, "", "pods") ? t.name : "", "portforward")
        : "";
    },
    many: false,
    run: ([t]) => openDialog((d) => d.forward(t)),
  },
  {
    id: "edit",
    key: "e",
    label: S.action.edit,
    applies: (k) => (k.verbs.includes("patch") || k.verbs.includes("update")) && k.kind !== "Event",
    refused: (t) => refusal("patch", t.kind, t.ns, t.name),
    many: false,
    run: ([t]) => go({ view: "edit", kind: t.kind.id, ns: t.ns, name: t.name }),
  },
  {
    id: "scale",
    key: "S",
    label: S.action.scale,
    applies: (k) => k.subresources.includes("scale"),
    refused: (t) => refusal("patch", t.kind, t.ns, t.name, "scale"),
    many: true,
    run: (targets) => openDialog((d) => d.scale(targets)),
  },
  {
    id: "restart",
    key: "R",
    label: S.action.restart,
    applies: (k) => isKind(k, "apps", "deployments", "statefulsets", "daemonsets"),
    refused: (t) => refusal("patch", t.kind, t.ns, t.name),
    many: true,
    run: (targets) =>
      confirm({
        title: S.restart.title,
        text: S.restart.text,
        targets: names(targets),
        button: S.action.restart,
        command: () => commandFor("rollout restart", targets),
        run: async () => {
          const restartedAt = new Date().toISOString();
          const ok = await each(targets, S.restart.done, (t) =>
            patch(objectPath(t.kind, t.ns, t.name), {
              spec: { template: { metadata: { annotations: { "kubectl.kubernetes.io/restartedAt": restartedAt } } } },
            }),
          );
          if (ok.length > 0) openDialog((d) => d.followRestarts(ok));
        },
      }),
  },
  {
    id: "undo",
    key: "u",
    label: S.action.undo,
    applies: (k) => isKind(k, "apps", "deployments", "statefulsets", "daemonsets"),
    refused: (t) => refusal("patch", t.kind, t.ns, t.name),
    many: false,
    run: ([t]) => openDialog((d) => d.undo(t)),
  },
  {
    id: "pause",
    key: "P",
    label: S.action.pause,
    applies: (k) => isKind(k, "apps", "deployments") || isKind(k, "batch", "cronjobs"),
    refused: (t) => refusal("patch", t.kind, t.ns, t.name),
    many: true,
    run: (targets) => void pause(targets),
  },
  {
    id: "cordon",
    key: "C",
    label: S.action.cordon,
    applies: (k) => isKind(k, "", "nodes"),
    refused: (t) => refusal("patch", t.kind, t.ns, t.name),
    many: true,
    run: (targets) => void cordon(targets),
  },
  {
    id: "drain",
    key: "D",
    label: S.action.drain,
    applies: (k) => isKind(k, "", "nodes"),
    refused: (t) => {
      const pods = kindByWord("pods");
      // Pods are in any namespace: a rule of one namespace would not do, and this reads those of "default".
      return refusal("patch", t.kind, "", t.name) || (pods ? refusal("create", pods, "", "", "eviction") : "");
    },
    many: false,
    run: ([t]) => openDialog((d) => d.drain(t)),
  },
  {
    id: "run",
    key: "T",
    label: S.action.runNow,
    applies: (k) => isKind(k, "batch", "cronjobs"),
    refused: (t) => {
      const jobs = kindByWord("jobs");
      return jobs ? refusal("create", jobs, t.ns) : "";
    },
    many: false,
    run: ([t]) => runNow(t),
  },
  {
    id: "delete",
    key: "x Delete",
    label: S.action.delete,
    applies: (k) => k.verbs.includes("delete") && k.kind !== "Event",
    refused: (t) => refusal("delete", t.kind, t.ns, t.name),
    many: true,
    danger: true,
    run: (targets) => openDialog((d) => d.deleteObjects(targets)),
  },
];

/** openLogs shows the logs of all that are marked as one; the address names them. */
function openLogs(targets: Target[], params: Record<string, string> = {}): void {
  const [t, ...rest] = targets;
  const more = rest.slice(0, MAX_LOGS - 1).map((x) => (x.ns === t.ns ? "" : x.ns + "/") + x.name);
  const marked = targets.length > MAX_LOGS ? String(targets.length) : "";
  go({ view: "logs", kind: t.kind.id, ns: t.ns, name: t.name, params: { ...params, more: more.join(","), marked } });
}

function hasLogs(k: Kind): boolean {
  return (
    isKind(k, "", "pods", "replicationcontrollers", "services") ||
    isKind(k, "apps", "deployments", "statefulsets", "daemonsets", "replicasets") ||
    isKind(k, "batch", "jobs", "cronjobs")
  );
}

/** pause pauses or resumes Deployments, and suspends or resumes CronJobs: as the first of them is. */
async function pause(targets: Target[]): Promise<void> {
  const t = targets[0];
  const cron = isKind(t.kind, "batch", "cronjobs");
  const field = cron ? "suspend" : "paused";
  let off: boolean;
  try {
    const object = t.object ?? (await api<Record<string, any>>("GET", objectPath(t.kind, t.ns, t.name)));
    off = !object.spec?.[field];
  } catch (err) {
    announce(S.actionFailed(t.name, reasonOf(err)), true);
    return;
  }
  const R = S.rollout;
  const body = { spec: { [field]: off } };
  confirm({
    title: cron ? (off ? R.suspendTitle : R.unsuspendTitle) : off ? R.pauseTitle : R.resumeTitle,
    text: cron ? (off ? R.suspendText : R.unsuspendText) : off ? R.pauseText : R.resumeText,
    targets: names(targets),
    button: off ? R.pauseButton : R.resumeButton,
    command: () =>
      cron ? commandFor("patch", targets, "-p", JSON.stringify(body)) : commandFor(off ? "rollout pause" : "rollout resume", targets),
    run: () => each(targets, off ? R.paused : R.resumed, (x) => patch(objectPath(x.kind, x.ns, x.name), body)),
  });
}

async function cordon(targets: Target[]): Promise<void> {
  const t = targets[0];
  let off: boolean;
  try {
    const node = t.object ?? (await api<Record<string, any>>("GET", objectPath(t.kind, "", t.name)));
    off = !node.spec?.unschedulable;
  } catch (err) {
    announce(S.actionFailed(t.name, reasonOf(err)), true);
    return;
  }
  confirm({
    title: off ? S.cordon.title : S.cordon.undoTitle,
    text: off ? S.cordon.text : S.cordon.undoText,
    targets: names(targets),
    button: off ? S.cordon.button : S.cordon.undoButton,
    command: () => command({ verb: off ? "cordon" : "uncordon", names: targets.map((x) => x.name) }),
    run: () =>
      each(targets, off ? S.cordon.done : S.cordon.undone, (x) =>
        patch(objectPath(x.kind, "", x.name), { spec: { unschedulable: off ? true : null } }),
      ),
  });
}

function runNow(t: Target): void {
  const name = (t.name.slice(0, 40) + "-manual-" + Math.random().toString(36).slice(2, 7)).toLowerCase();
  confirm({
    title: S.runNow.title,
    text: S.runNow.text(t.name),
    button: S.action.runNow,
    command: () => command({ verb: "create job", names: [name], options: ["--from=cronjob/" + t.name], ns: t.ns }),
    run: () =>
      each(
        [t],
        () => S.runNow.done(name),
        async () => {
          const cron = await api<Record<string, any>>("GET", objectPath(t.kind, t.ns, t.name));
          const jobs = kindByWord("jobs.batch");
          if (!jobs) throw new Error(S.runNow.noJobs);
          const template = cron.spec.jobTemplate;
          await api("POST", listPath(jobs, t.ns), {
            apiVersion: "batch/v1",
            kind: "Job",
            metadata: {
              name,
              namespace: t.ns,
              labels: template.metadata?.labels,
              annotations: { ...template.metadata?.annotations, "cronjob.kubernetes.io/instantiate": "manual" },
              // The same owner as kubectl sets: without blockOwnerDeletion, which would need more rights.
              ownerReferences: [{ apiVersion: "batch/v1", kind: "CronJob", name: t.name, uid: cron.metadata.uid, controller: true }],
            },
            spec: template.spec,
          });
        },
      ),
  });
}

/** whyOff is why an action cannot be done now with all of these; empty when it can. */
export function whyOff(a: Action, targets: Target[]): string {
  if (targets.length === 0) return S.nothingSelected;
  if (targets.length > 1 && !a.many) return S.oneAtATime;
  for (const t of targets) {
    const why = a.refused(t);
    if (why) return why;
  }
  return "";
}

/** perform runs an action, or says why it cannot be. */
export function perform(a: Action, targets: Target[]): void {
  const why = whyOff(a, targets);
  if (why) announce(why, targets.length > 0);
  else a.run(targets);
}
