// SPDX-License-Identifier: Apache-2.0

import assert from "node:assert/strict";
import test from "node:test";
import { continues, DEBUG, ERROR, INFO, levelOf, WARNING } from "../src/base/loglevel";

// Lines as the programs write them.
const lines: [level: number, line: string][] = [
  // klog
  [INFO, "I1129 11:55:20.845595       1 leaderelection.go:257] attempting to acquire leader lease kube-system/x..."],
  [WARNING, "W1129 11:55:21.000000       1 reflector.go:561] failed to list *v1.Pod: error 403"],
  [ERROR, 'E1129 11:55:22.000000       1 controller.go:140] "Unhandled Error" err="connection refused"'],
  [ERROR, "F1129 11:55:23.000000       1 main.go:44] cannot begin"],
  // zap
  [ERROR, '{"level":"error","ts":1764417320.84,"caller":"app/main.go:12","msg":"failed","stacktrace":"main.main\\n\\t/app/main.go:12"}'],
  [WARNING, '{"level":"WARN","ts":"2026-01-01T00:00:00Z","msg":"slow"}'],
  [ERROR, "2026-01-01T00:00:00.000Z\tERROR\tapp/main.go:12\tfailed\t{}"],
  [INFO, "2026-01-01T00:00:00.000Z\tINFO\tapp/main.go:12\tthe ERROR count is 0"],
  [ERROR, '{"level":"dpanic","msg":"x"}'.replace("dpanic", "panic")],
  // logrus
  [WARNING, 'time="2026-01-01T00:00:00Z" level=warning msg="the walrus is hot" error="none"'],
  [ERROR, 'time="2026-01-01T00:00:00Z" level=fatal msg="gone"'],
  [DEBUG, 'time="2026-01-01T00:00:00Z" level=debug msg=ERROR'],
  [INFO, "\u001b[36mINFO\u001b[0m[0000] A group of walrus emerges"],
  // slog
  [ERROR, 'time=2026-01-01T00:00:00.000Z level=ERROR msg=failed err="x"'],
  [WARNING, '{"time":"2026-01-01T00:00:00Z","level":"WARN","msg":"hot"}'],
  [DEBUG, '{"time":"2026-01-01T00:00:00Z","level":"DEBUG-4","msg":"fine"}'],
  [INFO, "2026/01/01 00:00:00 INFO hello count=3"],
  // Python
  [ERROR, "ERROR:root:it failed"],
  [WARNING, "2026-01-01 00:00:00,123 - app.worker - WARNING - retry 1"],
  [INFO, "[2026-01-01 00:00:00 +0000] [7] [INFO] Listening at: http://0.0.0.0:8000 (7)"],
  [ERROR, "Traceback (most recent call last):"],
  [ERROR, "ValueError: invalid literal for int() with base 10: 'x'"],
  [ERROR, "django.db.utils.OperationalError: no such table"],
  // nginx
  [ERROR, '2026/01/01 00:00:00 [error] 31#31: *1 open() "/usr/share/nginx/html/x" failed (2: No such file or directory)'],
  [WARNING, "2026/01/01 00:00:00 [warn] 1#1: the user directive makes sense only if the master process runs with root"],
  [INFO, "2026/01/01 00:00:00 [notice] 1#1: using the epoll event method"],
  [ERROR, "2026/01/01 00:00:00 [emerg] 1#1: bind() to 0.0.0.0:80 failed"],
  [INFO, '10.0.0.1 - - [01/Jan/2026:00:00:00 +0000] "GET /error?level=1 HTTP/1.1" 200 615 "-" "curl/8.0"'],
  // PostgreSQL
  [INFO, "2026-01-01 00:00:00.000 UTC [1] LOG:  database system is ready to accept connections"],
  [ERROR, '2026-01-01 00:00:00.000 UTC [42] ERROR:  relation "x" does not exist at character 15'],
  [ERROR, '2026-01-01 00:00:00.000 UTC [42] FATAL:  password authentication failed for user "x"'],
  [WARNING, "2026-01-01 00:00:00.000 UTC [42] WARNING:  there is no transaction in progress"],
  // Java: logback, Spring Boot, java.util.logging
  [ERROR, "00:00:00.123 [main] ERROR com.example.App - failed"],
  [WARNING, "2026-01-01T00:00:00.123Z  WARN 1 --- [main] c.e.App : slow"],
  [ERROR, "SEVERE: Exception starting filter"],
  [ERROR, 'Exception in thread "main" java.lang.NullPointerException: x'],
  [ERROR, "java.lang.IllegalStateException: closed"],
  // others: redis, MongoDB, pino, GCP, ECS, .NET, Rust, Go, npm, Ruby, containerd
  [WARNING, "1:M 01 Jan 2026 00:00:00.000 # WARNING Memory overcommit must be enabled!"],
  [INFO, "1:M 01 Jan 2026 00:00:00.000 * Ready to accept connections tcp"],
  [WARNING, '{"t":{"$date":"2026-01-01T00:00:00Z"},"s":"W","c":"CONTROL","msg":"Access control is not enabled"}'],
  [ERROR, '{"level":50,"time":1764417320,"pid":1,"msg":"failed"}'],
  [INFO, '{"level":30,"time":1764417320,"pid":1,"msg":"error count 0"}'],
  [ERROR, '{"severity":"CRITICAL","message":"x"}'],
  [WARNING, '{"@timestamp":"2026-01-01T00:00:00Z","log.level":"warn","message":"x"}'],
  [ERROR, '{"log":{"level":"error"},"message":"x"}'],
  [ERROR, "fail: Microsoft.AspNetCore.Server.Kestrel[13]"],
  [INFO, "info: Microsoft.Hosting.Lifetime[14]"],
  [WARNING, "2026-01-01T00:00:00.000000Z  WARN app::worker: slow"],
  [ERROR, "panic: runtime error: index out of range [3] with length 3"],
  [ERROR, "Error: Cannot find module './x'"],
  [ERROR, "E, [2026-01-01T00:00:00.000000 #1] ERROR -- : failed"],
  // What says nothing of its level, and words that are none.
  [INFO, "hello"],
  [INFO, ""],
  [INFO, "an error was corrected"],
  [INFO, "{not JSON"],
  [INFO, '{"msg":"ERROR in a message","level":"info"}'],
  [INFO, "Errors are logged to /var/log/x"],
  [INFO, "warnings 0, errors 0"],
];

test("levels of real lines", () => {
  const names = ["error", "warning", "info", "debug"];
  for (const [level, line] of lines) assert.equal(names[levelOf(line)], names[level], line);
});

test("lines that belong to the one before", () => {
  for (const line of [
    "\tat com.example.App.main(App.java:12)",
    "    raise ValueError(x)",
    "Caused by: java.io.IOException: closed",
    "... 12 more",
    "goroutine 1 [running]:",
    "}",
  ])
    assert(continues(line), line);
  for (const line of ["", "hello", '{"a":1}', "[main] x", "I1129 11:55:20.845595 1 x.go:1] y"]) assert(!continues(line), line);
});
