// SPDX-License-Identifier: Apache-2.0

// The containers of a pod, and which of them is meant.

type Pod = Record<string, any>;

/** ANNOTATION is kubectl's for the container that is meant when none is named. */
const ANNOTATION = "kubectl.kubernetes.io/default-container";

function namesIn(list: unknown): string[] {
  return Array.isArray(list) ? list.map((c: { name: string }) => c.name) : [];
}

/** logContainers are those that have logs. */
export function logContainers(pod: Pod): string[] {
  return [...namesIn(pod.spec?.initContainers), ...namesIn(pod.spec?.containers), ...namesIn(pod.spec?.ephemeralContainers)];
}

/** shellContainers are those in which a program can be run. */
export function shellContainers(pod: Pod): string[] {
  const sidecars = (pod.spec?.initContainers ?? []).filter((c: { restartPolicy?: string }) => c.restartPolicy === "Always");
  return [...namesIn(pod.spec?.containers), ...namesIn(pod.spec?.ephemeralContainers), ...namesIn(sidecars)];
}

/** chosenContainer is the wanted one if the pod has it, or else the default one. */
export function chosenContainer(pod: Pod, all: string[], wanted: string): string {
  if (all.includes(wanted)) return wanted;
  const annotated = pod.metadata?.annotations?.[ANNOTATION];
  return all.includes(annotated) ? annotated : (namesIn(pod.spec?.containers)[0] ?? all[0] ?? "");
}

interface Place {
  stdin: boolean;
  tty: boolean;
  running: boolean;
  ended: boolean;
  /** why is what the node says of a container that does not run. */
  why: string;
}

/** attachPlace is what a container lets one attach to. */
export function attachPlace(pod: Pod, name: string): Place {
  const all = [...(pod.spec?.containers ?? []), ...(pod.spec?.initContainers ?? []), ...(pod.spec?.ephemeralContainers ?? [])];
  const spec = all.find((c: { name: string }) => c.name === name);
  const { containerStatuses = [], initContainerStatuses = [], ephemeralContainerStatuses = [] } = pod.status ?? {};
  const statuses = [...containerStatuses, ...initContainerStatuses, ...ephemeralContainerStatuses];
  const state = statuses.find((s: { name: string }) => s.name === name)?.state ?? {};
  const said = state.waiting ?? state.terminated;
  return {
    stdin: !!spec?.stdin,
    tty: !!spec?.tty,
    running: !!state.running,
    ended: !!state.terminated || !spec,
    why: [said?.reason, said?.message].filter(Boolean).join(": "),
  };
}
