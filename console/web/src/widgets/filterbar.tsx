// SPDX-License-Identifier: Apache-2.0

// The field for a view's filter. The filter itself is in the address, so that "back" and a bookmark keep it.

import { isPlainOnly } from "../model/filter";
import { route, setParams } from "../api/route";
import { S } from "../base/strings";

export function focusFilter(): void {
  const field = document.querySelector<HTMLInputElement>("#filter");
  field?.focus();
  field?.select();
}

/** leaveField moves the keyboard to what is filtered. A list without rows has no table: then keys still work. */
function leaveField(): void {
  (document.querySelector<HTMLElement>(".table, .log") ?? document.querySelector<HTMLElement>("#main"))?.focus();
}

export function FilterBar({ placeholder }: { placeholder?: string }) {
  return (
    <>
      <input
        id="filter"
        type="search"
        autocomplete="off"
        spellcheck={false}
        enterkeyhint="search"
        aria-label={S.filter.label}
        title={S.filter.help}
        placeholder={placeholder ?? S.filter.placeholder}
        value={route.value.params.filter ?? ""}
        onInput={(e) => {
          setParams({ filter: e.currentTarget.value });
        }}
        onKeyDown={(e) => {
          if (e.key === "Enter" || e.key === "ArrowDown") {
            e.preventDefault();
            leaveField();
          } else if (e.key === "Escape") {
            e.preventDefault();
            setParams({ filter: "" });
            leaveField();
          }
        }}
      />
      {isPlainOnly(route.value.params.filter ?? "") && (
        <span class="faint" role="status">
          {S.filter.plain}
        </span>
      )}
    </>
  );
}
