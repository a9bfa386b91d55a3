// Two clients of npm's ws talk in a room.  usage: conversation.js URL offer|plain EXTENSION|none [CA]
"use strict";

const assert = require("node:assert");
const fs = require("node:fs");
const path = require("node:path");
const WebSocket = require(path.join(process.cwd(), "node_modules", "ws"));

const [url, offer, extension, ca] = process.argv.slice(2);
const options = { perMessageDeflate: offer === "offer", ...(ca && { ca: fs.readFileSync(ca) }) };
// Shorter than what is compressed, longer, and longer than a TLS record.
const sizes = [1, 400, 5_000, 30_000];

function onEarlyClose(code, reason) {
  console.error(`closed with ${code} ${reason}`);
  process.exit(1);
}

async function connect() {
  const socket = new WebSocket(url, options);
  const waiting = [], came = [];
  socket.on("message", (data, binary) => {
    assert(!binary);
    const event = JSON.parse(data);
    const place = waiting.findIndex((one) => one.wanted(event));
    if (place >= 0) waiting.splice(place, 1)[0].resolve(event);
    else came.push(event);
  });
  const expect = (wanted) => {
    const place = came.findIndex(wanted);
    return place >= 0 ? came.splice(place, 1)[0] : new Promise((resolve) => waiting.push({ wanted, resolve }));
  };
  const send = (message) => socket.send(JSON.stringify(message));
  socket.on("close", onEarlyClose);
  await new Promise((resolve, reject) => socket.on("open", resolve).on("error", reject));
  assert.strictEqual(socket.extensions, extension === "none" ? "" : extension);
  await expect((event) => event.type === "connection_established");
  send({ type: "join_room", roomId: "table" });
  await expect((event) => event.type === "room_joined");
  return { socket, expect, send };
}

async function main() {
  const [ann, bob] = [await connect(), await connect()];
  for (const [speaker, listener] of [[ann, bob], [bob, ann]]) {
    for (const size of sizes) {
      const data = "ünï ".repeat(size / 4 + 1);
      speaker.send({ type: "room_message", roomId: "table", data });
      const heard = await listener.expect((event) => event.type === "room_message");
      assert.strictEqual(heard.data, data);
    }
  }
  [ann, bob].forEach(({ socket }) => socket.off("close", onEarlyClose));
  ann.socket.ping();
  await new Promise((resolve) => ann.socket.on("pong", resolve));
  ann.socket.close(1000, "bye");
  const code = await new Promise((resolve) => ann.socket.on("close", resolve));
  assert.strictEqual(code, 1000);
  bob.socket.terminate();
  console.log("done");
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
