// SPDX-License-Identifier: Apache-2.0

// The texts of the overview (strings.ts has the others): it is a part of its own, and no other view needs them.

/** Finding is what a sentence needs of a finding (api/health.ts). */
interface Finding {
  about?: string;
  text?: string;
  have?: number;
  want?: number;
  passing?: boolean;
}

const restarted = (n: number) => (n === 0 ? "" : n === 1 ? "; restarted once" : `; restarted ${n} times`);
const because = (why: string) => (why ? ": " + why : "");

export const O = {
  use: {
    title: "What uses much",
    near: "Close to its memory limit",
    above: ["Above its CPU request", "Above its memory request"],
    nearText: (used: string, share: string) =>
      `A pod uses ${used} of memory, and one of its containers ${share} of its limit. At the limit it is killed.`,
    aboveText: (used: string, share: string) => `Its pods use ${used}, which is ${share} of what they request.`,
    more: (n: number) => `${n} more; the list of pods can be sorted by what they use.`,
  },
  nothing: "Nothing is wrong.",
  nothingOfYours: "Nothing is wrong in what you may see.",
  warned: (n: number) =>
    `Nothing shows what is wrong, but there ${n === 1 ? "was 1 warning" : `were ${n} warnings`} in the last ten minutes.`,
  old: "This may be old: the cluster has not answered all questions for minutes.",
  unread: (n: number) => `${n === 1 ? "1 kind" : `${n} kinds`} of custom objects have not been read yet.`,
  cut: (kind: string, n: number) => `Of ${kind} only the first ${n} objects are checked.`,
  cutKinds: (n: number, kinds: string) => `Only ${n} kinds of custom objects are checked. Not among them: ${kinds}.`,
  full: "There are more problems than the check lists.",
  checkFailed: (why: string) => `The check of conditions has failed: ${why}`,
  details: "Details",
  podsOf: (n: number) => (n > 1 ? `${n} pods of ` : ""),
  morePods: (n: number) => `${n} more pods`,

  /** pod has the sentences about a pod. Each begins with what is wrong. */
  pod: {
    probe: (probe: string, container: string, why: string, restarts: number) =>
      `${probe} probe fails on ${container}${because(why)}${restarted(restarts)}`,
    at: (what: string, port: string) => `${what} at :${port}`,
    memory: (container: string, limit: string, restarts: number) =>
      `${container} was killed: it used more memory than its limit${limit ? " of " + limit : ""}${restarted(restarts)}`,
    image: (container: string, image: string, why: string) => `Image ${image} of ${container} cannot be used${because(why)}`,
    missing: (kind: string, name: string) => `${kind} ${name} is missing`,
    config: (container: string, why: string) => `${container} cannot be made${because(why)}`,
    start: (container: string, why: string) => `${container} cannot be started${because(why)}`,
    exit: (container: string, code: number, why: string, restarts: number) =>
      `${container} ends with exit code ${code}${because(why)}${restarted(restarts)}`,
    unscheduled: (why: string) => `No node can take it${because(why)}`,
    volume: (why: string) => `A volume cannot be mounted${because(why)}`,
    notReady: (container: string) => `${container} is not ready`,
    deleting: (finalizers: string) =>
      finalizers ? `Being deleted, and waits for the finalizers ${finalizers}` : "Being deleted, and its node does not end it",
    restarts: (container: string, restarts: number) => `${container} restarts${restarted(restarts)}`,
  },

  quota: (name: string, text: string) => `No pods can be made: quota ${name} is used up${text ? ` (${text})` : ""}`,
  cannotMake: (why: string) => `No pods can be made${because(why)}`,
  claim: (status: string, why: string) => `The claim is ${status === "Pending" ? "not bound" : status}${because(why)}`,

  /** finding has a sentence for each word of console/health.go. */
  finding: {
    unavailable: (f: Finding) => `${f.have ?? 0} of ${f.want ?? 0} pods are ready`,
    stuck: (f: Finding) => `The rollout does not go on${because(f.text ?? "")}`,
    jobFailed: (f: Finding) => `The job has failed${because(f.text ?? "")}`,
    jobRetries: (f: Finding) => `${f.have === 1 ? "1 pod" : `${f.have} pods`} of the job failed, and it will try again`,
    jobIdle: () => "The job has not started a pod",
    lastRun: (f: Finding) => `The last run, ${f.about}, has failed${because(f.text ?? "")}`,
    scaling: (f: Finding) => `Cannot ${f.about === "AbleToScale" ? "scale" : "be measured"}${because(f.text ?? "")}`,
    budget: (f: Finding) => `Only ${f.have ?? 0} of the ${f.want ?? 0} healthy pods that it wants are there, so none may be evicted`,
    budgetEmpty: () => "The budget selects no pods",
    condition: (f: Finding) => `${f.about}${because(f.text ?? "")}`,
    noAddress: () => "No load balancer has given it an address",
    endpoints: (f: Finding) =>
      f.want
        ? `None of the ${f.want === 1 ? "pod" : f.want + " pods"} behind the Service is ready`
        : "No pod is behind the Service: its selector finds none",
    backend: (f: Finding) => `Service ${f.about}, to which it leads, does not exist`,
    backendPort: (f: Finding) => `Service ${f.about}, to which it leads, has no port ${f.text}`,
    ignored: () => "No controller has taken it",
    webhook: (f: Finding) =>
      `Its Service ${f.about} has no ready endpoint${f.passing ? ", so it is left out" : ": the requests that it checks are refused"}`,
    deleting: (f: Finding) => `Being deleted, and waits for the finalizers ${f.about?.replace(/^\[|\]$/g, "")}`,
  } as Record<string, (f: Finding) => string>,
};
