// SPDX-License-Identifier: Apache-2.0

// memo draws a component again only when one of its properties is another, but for those that are ignored.

import { Component, createElement, type FunctionComponent } from "preact";

export function memo<P extends object>(inner: FunctionComponent<P>, ignored: (keyof P)[] = []): FunctionComponent<P> {
  class Memo extends Component<P> {
    override shouldComponentUpdate(next: Readonly<P>): boolean {
      const was = this.props as Record<string, unknown>;
      const will = next as Record<string, unknown>;
      for (const k in will) if (was[k] !== will[k] && !ignored.includes(k as keyof P)) return true;
      return false;
    }
    override render() {
      return createElement(inner as FunctionComponent<any>, this.props as any);
    }
  }
  return Memo as unknown as FunctionComponent<P>;
}
