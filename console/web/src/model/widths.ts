// SPDX-License-Identifier: Apache-2.0

// The widths of a table's columns: what people look for gets the room, the rest is no wider than its text.

/** LEAST are the columns that get the room that is left, with what they have in any case, in characters. */
const LEAST: Record<string, number> = { Name: 24, Message: 40, Reason: 24, Status: 24, Object: 24 };

/** OTHERS is what another column has in any case, and at most. */
const OTHERS = [12, 40];

/** LONGEST is the longest text that counts: a longer one is cut, and whole in the title of its cell. */
export const LONGEST = 160;

/**
 * tracksOf gives the tracks of a grid for columns whose longest texts have these numbers of characters, and the width
 * under which the table is scrolled.
 */
export function tracksOf(columns: { name: string; text: number }[], linked: string): { tracks: string; least: number } {
  let total = 0;
  const tracks = columns.map(({ name, text }) => {
    const own = name === linked ? LEAST.Name : LEAST[name];
    const least = Math.min(text, own ?? OTHERS[0]);
    total += least;
    return `minmax(${least}ch, ${own ? text + "fr" : Math.min(text, OTHERS[1]) + "ch"})`;
  });
  return { tracks: tracks.join(" "), least: total };
}
