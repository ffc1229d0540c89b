// SPDX-License-Identifier: Apache-2.0

// The texts of the editor, and of the pages that edit and create. They are loaded with these.

const mistakes = (n: number, all: number): string =>
  all === 1 ? "There are mistakes in it" : `${n} of ${all} objects ${n === 1 ? "has" : "have"} mistakes`;

export const E = {
  edit: {
    of: "Edit",
    label: (name: string) => `YAML of ${name}`,
    review: "Review changes",
    reviewKey: "Ctrl+Enter",
    diff: "What will change",
    noDiff: "Nothing will change.",
    apply: "Apply",
    more: "Edit more",
    unchanged: "You have not changed anything.",
    restored: "Your text from before is here again.",
    done: (name: string) => `${name} is changed.`,
    conflict:
      "The object was changed by someone else in the meantime. Red lines are the object as it is now, green lines are yours. Choose for each difference (Alt+Enter keeps yours, Alt+Shift+Enter takes theirs), then review again.",
    combined:
      "The object was changed by someone else in the meantime. The text is now the object as it is, with your changes on top: red lines are the object as it is now, green lines are yours. Where both changed the same, yours is there: choose for each difference (Alt+Enter keeps yours, Alt+Shift+Enter takes theirs), then review again.",
    before: (n: number, all: number) => (all === 1 ? "Your text as it was" : `Your text as it was, ${n} of ${all}`),
    beforeLabel: "Your text as it was",
    putBack: "Put this text back",
    isBack: "The text is as it was. Ctrl+Z takes that back.",
    mine: "Keep mine",
    theirs: "Take theirs",
    keysNote: "Ctrl+Enter reviews, Esc leaves",
    leaveTitle: "Leave without applying?",
    leaveText: "Your changes are not applied and will be lost.",
    leave: "Leave",
  },

  create: {
    label: "YAML to create",
    hint: "Paste YAML or drop files here.",
    namespace: "Namespace",
    files: "Files…",
    check: "Check",
    apply: "Apply",
    checked: "The server would accept this:",
    checkedPart: "The server would accept this, as far as it can be checked now:",
    failed: (n: number, all: number) => `${mistakes(n, all)}. Nothing is written.`,
    applied: "Applied:",
    partly: (n: number, all: number) => `Applied: ${all - n} of ${all} objects. Failed: ${n}.`,
    again: "What is applied stays. Correct the text, check and apply it again: objects that are the same stay as they are.",
    changed: "The text was changed since. Check it again.",
    document: (n: number) => `document ${n}`,
    later: "it is checked when it is applied",
    added: (n: number) => (n === 1 ? "1 file is added." : `${n} files are added.`),
    done: (n: number) => (n === 1 ? "1 object is applied." : `${n} objects are applied.`),
    would: { created: "would be created", configured: "would be changed", unchanged: "is there already" },
    action: { created: "created", configured: "changed", unchanged: "unchanged" },
  },

  problems: {
    line: (n: number) => `line ${n}`,
    next: "F8 goes to the next mistake.",
    said: "The server's words",
  },
};
