// SPDX-License-Identifier: Apache-2.0

// A debug container in a running pod, as kubectl debug makes one.

import { useState } from "preact/hooks";
import { api, patch, reasonOf } from "../api/client";
import { Command, show } from "../widgets/dialog";
import { kindByWord, objectPath } from "../api/kinds";
import { command } from "../model/kubectl";
import { go } from "../api/route";
import { D } from "../base/dialogstrings";
import { S } from "../base/strings";
import { visible } from "../base/text";
import type { Target } from "../model/target";

/** PROFILES are kubectl's, as they change an ephemeral container. */
const PROFILES: Record<string, object | undefined> = {
  general: { capabilities: { add: ["SYS_PTRACE"] } },
  baseline: undefined,
  restricted: {
    runAsNonRoot: true,
    capabilities: { drop: ["ALL"] },
    allowPrivilegeEscalation: false,
    seccompProfile: { type: "RuntimeDefault" },
  },
};

/** imagesOf are the names of images that a node has; empty when the user may not see it. */
async function imagesOf(node: string): Promise<string[]> {
  const nodes = kindByWord("nodes");
  if (!nodes || !node) return [];
  try {
    const n = await api<{ status?: { images?: { names?: string[] }[] } }>("GET", objectPath(nodes, "", node));
    const named = (n.status?.images ?? []).map((i) => (i.names ?? []).find((name) => !name.includes("@")) ?? i.names?.[0] ?? "");
    return [...new Set(named.filter(Boolean))].sort();
  } catch {
    return [];
  }
}

interface Asked {
  target: Target;
  images: string[];
  containers: string[];
  close: () => void;
}

export async function debug(t: Target): Promise<void> {
  const pod = t.object ?? (await api<Record<string, any>>("GET", objectPath(t.kind, t.ns, t.name)));
  const images = await imagesOf(pod.spec?.nodeName ?? "");
  const containers = ((pod.spec?.containers ?? []) as { name: string }[]).map((c) => c.name);
  show({ title: D.debug.title, content: (close) => <Debug target={t} images={images} containers={containers} close={close} /> });
}

function Debug({ target: t, images, containers, close }: Asked) {
  const [image, setImage] = useState("");
  const [container, setContainer] = useState(containers[0] ?? "");
  const [profile, setProfile] = useState("general");
  const [error, setError] = useState("");
  const [busy, setBusy] = useState(false);
  const pod = /^-|\//.test(t.name) ? "pod/" + t.name : t.name;
  const options = [
    "--image=" + image,
    "--image-pull-policy=IfNotPresent",
    ...(container ? ["--target=" + container] : []),
    "--profile=" + profile,
  ];
  const start = async () => {
    setBusy(true);
    setError("");
    const name = "debugger-" + Math.random().toString(36).slice(2, 7);
    try {
      await patch(
        objectPath(t.kind, t.ns, t.name) + "/ephemeralcontainers",
        {
          spec: {
            ephemeralContainers: [
              {
                name,
                image,
                // An image that the node has needs no registry, whatever its tag is.
                imagePullPolicy: "IfNotPresent",
                stdin: true,
                tty: true,
                terminationMessagePolicy: "File",
                targetContainerName: container || undefined,
                securityContext: PROFILES[profile],
              },
            ],
          },
        },
        "application/strategic-merge-patch+json",
      );
      close();
      go({ view: "shell", kind: t.kind.id, ns: t.ns, name: t.name, params: { mode: "attach", container: name } });
    } catch (err) {
      setError(reasonOf(err));
      setBusy(false);
    }
  };
  return (
    <form
      onSubmit={(e) => {
        e.preventDefault();
        if (!busy) void start();
      }}
    >
      <p>{D.debug.text(visible(t.name))}</p>
      <label class="field">
        {D.debug.image}
        <input
          data-first
          required
          autocomplete="off"
          spellcheck={false}
          list="debug-images"
          value={image}
          onInput={(e) => setImage(e.currentTarget.value.trim())}
        />
      </label>
      <datalist id="debug-images">
        {images.map((i) => (
          <option key={i} value={i}>
            {visible(i)}
          </option>
        ))}
      </datalist>
      <p class="faint">{D.debug.imagesHint(images.length)}</p>
      <label class="field">
        {D.debug.target}
        <select value={container} onChange={(e) => setContainer(e.currentTarget.value)}>
          {containers.map((c) => (
            <option key={c} value={c}>
              {visible(c)}
            </option>
          ))}
          <option value="">{D.debug.noTarget}</option>
        </select>
      </label>
      <label class="field">
        {D.debug.profile}
        <select value={profile} onChange={(e) => setProfile(e.currentTarget.value)}>
          {Object.keys(PROFILES).map((p) => (
            <option key={p} value={p}>
              {D.debug.profiles[p]}
            </option>
          ))}
        </select>
      </label>
      {error && (
        <p class="bad" role="alert">
          {visible(error)}
        </p>
      )}
      <Command text={image && command({ verb: "debug -it", names: [pod], options, ns: t.ns })} />
      <div class="buttons">
        <button type="button" onClick={close}>
          {S.cancel}
        </button>
        <button type="submit" class="primary" disabled={busy}>
          {D.debug.button}
        </button>
      </div>
    </form>
  );
}
