// SPDX-License-Identifier: Apache-2.0

// The pages of the console begin here.

import { render } from "preact";
import { App } from "./app";
import { start } from "./session";

render(<App />, document.getElementById("app")!);
void start();
