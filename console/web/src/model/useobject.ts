// SPDX-License-Identifier: Apache-2.0

// One object that stays true.

import { useSignal, type Signal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { type Client, type Message, Stream, troubleOf } from "../api/connection";
import { S } from "../base/strings";

interface State {
  object: Record<string, any> | null;
  yaml: string;
  deleted: boolean;
  /** missing is whether there is no such object. */
  missing: boolean;
  error: string;
  trouble: string;
}

const NOTHING: State = { object: null, yaml: "", deleted: false, missing: false, error: "", trouble: "" };

/** useObject follows one object. */
export function useObject(path: string): Signal<State> {
  const state = useSignal<State>(NOTHING);
  useEffect(() => {
    state.value = NOTHING;
    const client: Client = {
      watch: true,
      resume: () => ({ op: "object", path }),
      message(m: Message) {
        if (m.type === "object") state.value = { object: m.object, yaml: m.yaml, deleted: false, missing: false, error: "", trouble: "" };
        else if (m.type === "deleted") state.value = { ...state.value, deleted: true };
        else if (m.type === "state") state.value = { ...state.value, trouble: troubleOf(m) };
        else if (m.type === "end" && (m.code || !state.value.object))
          state.value = { ...state.value, missing: m.code === 404, error: m.message || S.object.ended };
      },
    };
    const stream = new Stream({ op: "object", path }, client);
    return () => stream.close();
  }, [path]);
  return state;
}
