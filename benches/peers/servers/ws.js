// Text rooms on npm's ws, with ioredis between instances if REDIS_PORT is set: node ws.js PORT
'use strict';
const { randomUUID } = require('node:crypto');
const { WebSocketServer } = require('ws');

const rooms = new Map();

function deliver(room, text, sender) {
  for (const member of rooms.get(room) ?? []) {
    if (member !== sender) member.send(text, { binary: false });
  }
}

let publish = () => {};
let subscribe = () => {};
let unsubscribe = () => {};

if (process.env.REDIS_PORT) {
  const { Redis } = require('ioredis');
  // Gathers what is published in one turn of the event loop into one write.
  const publisher = new Redis(process.env.REDIS_PORT, '127.0.0.1', { enableAutoPipelining: true });
  const subscriber = new Redis(process.env.REDIS_PORT, '127.0.0.1');
  const instance = Buffer.from(randomUUID());
  publish = (room, text) => publisher.publish(room, Buffer.concat([instance, text]));
  subscribe = (room) => subscriber.subscribe(room);
  unsubscribe = (room) => subscriber.unsubscribe(room);
  subscriber.on('messageBuffer', (room, message) => {
    const own = message.subarray(0, instance.length).equals(instance);
    if (!own) deliver(room.toString(), message.subarray(instance.length));
  });
}

const server = new WebSocketServer({ host: '127.0.0.1', port: Number(process.argv[2]), backlog: 4096 });
server.on('connection', (ws, request) => {
  const room = new URL(request.url, 'ws://localhost').searchParams.get('room');
  ws.on('error', () => {});
  if (!room) return;
  if (!rooms.has(room)) {
    rooms.set(room, new Set());
    subscribe(room);
  }
  const members = rooms.get(room).add(ws);
  ws.on('message', (text) => {
    deliver(room, text, ws);
    publish(room, text);
  });
  ws.on('close', () => {
    if (members.delete(ws) && members.size === 0) {
      rooms.delete(room);
      unsubscribe(room);
    }
  });
});
