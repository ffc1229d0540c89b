// SPDX-License-Identifier: Apache-2.0

// The pages of the console begin here.

import { render } from "preact";
import { App } from "./app/app";
import { start } from "./api/session";

render(<App />, document.getElementById("app")!);
void start();
