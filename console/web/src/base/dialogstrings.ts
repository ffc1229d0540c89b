// SPDX-License-Identifier: Apache-2.0

// The texts of dialogs, which are loaded with the first of them, and of what a deletion waits for.

export const D = {
  scale: {
    title: (what: string) => `Scale ${what}`,
    titleOf: (n: number) => `Scale ${n} objects`,
    count: (n: number) => (n === 1 ? "1 replica" : `${n} replicas`),
    now: (n: number) => `It has ${n === 1 ? "1 replica" : `${n} replicas`} now.`,
    jump: "This is more than three times as many as now. Is the number right?",
    jumpOf: (name: string, now: number, wanted: number) => `${name}: from ${now} to ${wanted}, ${wanted - now} more`,
    anyway: (n: number) => `Scale to ${n}`,
    hpa: (name: string, min: number, max: number) =>
      `HorizontalPodAutoscaler ${name} owns this number: ${min} to ${max}. It sets its own again; 0 switches it off.`,
    controller: (kind: string, name: string) => `${kind} ${name} controls this object, and may set its own number again.`,
    helm: (name: string) => `Helm made this object${name && ` in release ${name}`}: an upgrade may set the chart's number again.`,
    argo: (name: string) => `Argo CD keeps this object${name && ` for application ${name}`}, and may set its own number again.`,
    flux: (name: string) => `Flux keeps this object${name && ` for ${name}`}, and may set its own number again.`,
  },

  restart: {
    finished: (name: string, n: number) => `${name} has restarted: ${n === 1 ? "1 new pod is ready" : `${n} new pods are ready`}.`,
    slow: (name: string, n: number, of: number) => `${name} still restarts after a minute: ${n} of ${of} new pods are ready.`,
  },

  delete: {
    title: (what: string) => `Delete ${what}?`,
    titleOf: (n: number, kinds: string) => `Delete ${n} ${kinds}?`,
    forever: "This cannot be undone.",
    loss: {
      namespace: "Everything in the namespace is deleted, with the data of its claims.",
      node: "The cluster forgets the node, and its pods are deleted. A node that still runs comes back, without its labels and taints.",
      volume: "The cluster forgets the volume. The claim that uses it loses it.",
      crd: "All objects of this kind are deleted, in all namespaces.",
      controlledPod: "A pod that has a controller is replaced by a new one. What it kept in emptyDir volumes is lost.",
      barePod: "The pod has no controller: nothing makes it again. What it kept in emptyDir volumes is lost.",
      workload: "Its pods are deleted, too.",
      statefulSet: "Its pods are deleted, too. Its volume claims stay, unless its retention policy says otherwise.",
      claim: "The data of its volume is lost, unless the volume's reclaim policy is Retain.",
      config: "Pods that need it do not start any more.",
      service: "Clients do not reach what is behind it any more.",
      rights: "Those who have rights by it lose them.",
      chart: "The release is uninstalled, with all its objects.",
      other: "What it owns is deleted, too.",
    },
    counting: "Counting what goes with it…",
    count: (n: number, kinds: number, partial: boolean) =>
      `${partial ? "At least " : ""}${n === 1 ? "1 object" : `${n} objects`}${kinds > 1 ? ` of ${kinds} kinds` : ""} ${n === 1 ? "goes" : "go"} with it.`,
    most: (list: string[]) => `Most: ${list.join(", ")}.`,
    typeName: (name: string) => `Type ${name} to confirm`,
    typeNumber: (n: number) => `Type ${n} to confirm`,
    already: (since: string) => `Its deletion began ${since} ago.`,
    replaced: "this is a new object: the one that was shown has gone. Nothing was deleted.",
    choices: "Choices",
    grace: "Grace period in seconds; empty: what each pod says",
    force: "Force: do not wait for the node",
    forceRisk:
      "The pod is forgotten at once, and its containers may run on. Force only pods whose node is gone: else two with the same name and volume may run.",
    cascade: "What it owns",
    cascades: {
      background: "is deleted after it",
      foreground: "is deleted before it",
      orphan: "stays, without an owner",
    },
    done: (n: number, name: string) => (n === 1 ? `${name} is being deleted.` : `${n} objects are being deleted.`),
  },

  finalizer: {
    title: (what: string) => `Remove a finalizer of ${what}`,
    action: "Remove finalizer",
    waits: (names: string[]) => `It waits for the ${names.length === 1 ? "finalizer" : "finalizers"} ${names.join(", ")}.`,
    risk: {
      inUse: "It is kept because it is still in use. Without the finalizer a pod may lose its data while it runs.",
      dependents: "Objects that belong to it are not waited for any more, and may stay.",
      backend: "What is outside of the cluster, such as a disk or a load balancer, is not removed, and may go on costing.",
      other: "The program that set it has not cleaned up. What it made, also outside of the cluster, may stay for ever.",
    },
    done: (finalizer: string, name: string) => `The finalizer ${finalizer} of ${name} is removed.`,
    changed: "the object has changed since it was read. Nothing was removed.",
  },

  drain: {
    title: (name: string) => `Drain node ${name}`,
    text: "The node is cordoned and its pods are evicted. Pods that a controller has start on other nodes.",
    daemonSets: "Leave pods of DaemonSets (they would come back at once)",
    emptyDir: (n: number) => `Evict ${n === 1 ? "1 pod" : n ? `${n} pods` : "pods"} with emptyDir volumes: their data is lost`,
    force: (n: number) => `Evict ${n === 1 ? "1 pod" : n ? `${n} pods` : "pods"} without a controller: nothing makes them again`,
    unread: (why: string) => `What is on the node is not known: ${why}`,
    pods: "Pods on the node",
    podColumns: ["Pod", "Controller", "What happens"],
    goes: "is evicted",
    stays: "stays",
    needs: { daemonSets: "of a DaemonSet", emptyDir: "data in emptyDir is lost", force: "is not made again" },
    none: "No pods are on the node.",
    grace: "Grace period in seconds; empty: what each pod says",
    timeout: "Give up after seconds; empty: never",
    button: "Drain",
    running: "The node is being drained. Closing this stops it: what was evicted stays evicted, and the node stays cordoned.",
    done: (name: string) => `${name} is drained: no pods are left but those that stay.`,
    lost: "The connection was lost, and the drain has stopped. The node stays cordoned.",
    failed: "The drain has stopped.",
    columns: ["Pod", "State", "Why"],
    state: {
      evicted: "is ending",
      refused: "may not go yet",
      gone: "has gone",
      ignored: "stays",
      cordoned: "the node is cordoned",
    } as Record<string, string>,
    again: "Change the options",
    count: (gone: number, all: number) => `${gone} of ${all} pods have gone.`,
  },

  debug: {
    title: "Debug container",
    text: (name: string) =>
      `A container with tools of its own starts in pod ${name}. It cannot be removed: it stays in the pod until that is deleted.`,
    image: "Image",
    imagesHint: (n: number) =>
      n
        ? `The pod's node has ${n === 1 ? "1 image" : n + " images"}, which the field offers: no download is needed.`
        : "What images the pod's node has is not known.",
    target: "Sees the processes of",
    noTarget: "no container",
    profile: "Rights",
    profiles: {
      general: "general: may trace processes",
      baseline: "baseline: no more than the default",
      restricted: "restricted: no root, for namespaces that demand it",
    } as Record<string, string>,
    button: "Start",
  },
};
