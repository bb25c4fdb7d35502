// A service in another language, from the protos alone: it lists, starts and stops a container, records an event of its
// own, and tails the log meanwhile. Usage: node service.js HOST:PORT CONTAINER, with LADING_TOKEN; prints one JSON object.
"use strict";

const path = require("node:path");
const { randomUUID } = require("node:crypto");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [address, container] = process.argv.slice(2);
const contract = loader.loadSync(
  ["agents", "audit_log", "commands", "containers"].map((name) => `lading/v1/${name}.proto`),
  { includeDirs: [path.join(__dirname, "../../protos")], keepCase: true, longs: Number, enums: String, defaults: true },
);
const { Containers, AuditLog } = grpc.loadPackageDefinition(contract).lading.v1;
const metadata = new grpc.Metadata();
metadata.set("authorization", `Bearer ${process.env.LADING_TOKEN}`);
metadata.set("x-request-id", "node-1");

const containers = new Containers(address, grpc.credentials.createInsecure());
const log = new AuditLog(address, grpc.credentials.createInsecure());

/** One unary call: {answer, operation}, or {code, details} when it failed. */
function call(client, method, request) {
  return new Promise((resolve) => {
    let operation;
    const options = { deadline: Date.now() + 20_000 };
    const unary = client[method](request, metadata, options, (error, answer) => {
      // The status, and the trailing metadata with it, comes just after the answer.
      if (error) resolve({ code: grpc.status[error.code], details: error.details });
      else setImmediate(() => resolve({ answer, operation }));
    });
    unary.on("status", (status) => ([operation] = status.metadata.get("lading-operation")));
  });
}

/** Tails the log from its beginning until `last` says that an event is the last one wanted. */
function tail(last) {
  return new Promise((resolve, reject) => {
    const events = [];
    const stream = log.TailEvents({ from_index: 0 }, metadata, { deadline: Date.now() + 30_000 });
    stream.on("data", (message) => {
      events.push(...message.events);
      if (message.events.some(last)) {
        stream.cancel();
        resolve(events);
      }
    });
    stream.on("error", (error) => error.code === grpc.status.CANCELLED || reject(error));
  });
}

async function main() {
  const id = randomUUID();
  const tailed = tail((event) => event.id === id);
  const listed = await call(containers, "ListContainers", { page_size: 10 });
  const started = await call(containers, "StartContainer", { name: container, reason: "node starts it" });
  const again = await call(containers, "StartContainer", { name: container, reason: "node starts it twice" });
  const stopped = await call(containers, "StopContainer", { name: container, reason: "node stops it" });
  const unknown = await call(containers, "StartContainer", { name: `${container}-unknown` });
  const recorded = await call(log, "RecordEvents", {
    events: [{ id, action: "task.update", targets: [{ type: "task", id: "T-1" }], reason: "moved" }],
  });
  const events = await tailed;
  console.log(JSON.stringify({ id, listed, started, again, stopped, unknown, recorded, events }));
}

main()
  .catch((error) => {
    console.error(error);
    process.exitCode = 1;
  })
  .finally(() => [containers, log].forEach((client) => client.close()));
