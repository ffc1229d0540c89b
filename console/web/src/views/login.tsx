// SPDX-License-Identifier: Apache-2.0

// The login page: a token, or a kubeconfig file that has one. Nothing of the file leaves the browser but the token.

import { useSignal } from "@preact/signals";
import { useLayoutEffect, useRef } from "preact/hooks";
import { tokenOfKubeconfig } from "../base/kubeconfig";
import { begin } from "../api/oidc";
import { chooseContext } from "../actions/contexts";
import { login, mode, refused, token } from "../api/session";
import { DialogHost } from "../widgets/dialog";
import { S } from "../base/strings";
import { visible } from "../base/text";

export function LoginPage() {
  const text = useSignal("");
  const busy = useSignal(false);
  const field = useRef<HTMLTextAreaElement>(null);
  const loopback = mode.value?.mode === "loopback";
  const issuer = mode.value?.issuer;
  const first = useRef<HTMLButtonElement>(null);
  useLayoutEffect(() => (first.current ?? field.current)?.focus(), []);

  async function toProvider(): Promise<void> {
    busy.value = true;
    refused.value = await begin();
    busy.value = false;
  }

  async function submit(token: string): Promise<void> {
    busy.value = true;
    try {
      await login(token);
    } catch {
      refused.value = S.login.unreachable;
    }
    busy.value = false;
    field.current?.focus(); // the button was off meanwhile, and lost it
  }

  async function read(file: File | undefined): Promise<void> {
    if (!file) return;
    const found = tokenOfKubeconfig(await file.text());
    if ("token" in found) await submit(found.token);
    else refused.value = found.problem === "none" ? S.login.noToken : S.login.unsure;
  }

  return (
    <main class="login">
      <h1>{S.title}</h1>
      {refused.value && (
        <p class="problem" role="alert">
          {visible(refused.value)}
        </p>
      )}
      {issuer && (
        <div class="buttons start">
          <button type="button" class="primary" ref={first} disabled={busy.value} onClick={() => void toProvider()}>
            {S.oidc.button(visible(issuer))}
          </button>
        </div>
      )}
      {loopback && token() && (
        <div class="buttons start">
          <button type="button" disabled={busy.value} onClick={() => void submit(token())}>
            {S.login.again}
          </button>
          <button type="button" id="other-context" onClick={() => void chooseContext()}>
            {S.contexts.title}
          </button>
          <DialogHost />
        </div>
      )}
      <p>{loopback ? S.login.loopback : issuer ? S.oidc.orToken : S.login.server}</p>
      {loopback && <pre class="data">coracle console</pre>}
      <form
        onSubmit={(e) => {
          e.preventDefault();
          if (text.value.trim()) void submit(text.value);
        }}
      >
        <label class="field">
          {S.login.token}
          <textarea
            ref={field}
            rows={4}
            autocomplete="off"
            spellcheck={false}
            value={text.value}
            onInput={(e) => (text.value = e.currentTarget.value)}
          />
        </label>
        <div class="buttons start">
          <button type="submit" class="primary" disabled={busy.value}>
            {S.login.submit}
          </button>
          <label class="file">
            {S.login.file}
            <input type="file" onChange={(e) => void read(e.currentTarget.files?.[0])} />
          </label>
        </div>
      </form>
      {!loopback && (
        <p class="faint">
          {S.login.create} <code>coracle console token --role view --ttl 1h</code>
        </p>
      )}
    </main>
  );
}
