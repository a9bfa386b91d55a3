// Rooms on Socket.IO; between instances with the adapter that ADAPTER names (redis, sharded), through the Redis
// at REDIS_PORT: node socketio.js PORT
'use strict';
const { Server } = require('socket.io');

function adapter() {
  if (!process.env.REDIS_PORT) return undefined;
  const { Redis } = require('ioredis');
  const { createAdapter, createShardedAdapter } = require('@socket.io/redis-adapter');
  const publisher = new Redis(process.env.REDIS_PORT, '127.0.0.1', { enableAutoPipelining: true });
  const subscriber = new Redis(process.env.REDIS_PORT, '127.0.0.1');
  return process.env.ADAPTER === 'sharded'
    ? createShardedAdapter(publisher, subscriber)
    : createAdapter(publisher, subscriber);
}

const http = require('node:http').createServer();
const io = new Server(http, { transports: ['websocket'], serveClient: false, adapter: adapter() });
io.on('connection', (socket) => {
  let room;
  socket.on('join', async (name, joined) => {
    room = name;
    await socket.join(room);
    joined();
  });
  socket.on('m', (data) => socket.to(room).emit('m', data));
});
http.listen({ host: '127.0.0.1', port: Number(process.argv[2]), backlog: 4096 });
