// Text rooms on uWebSockets with its own publish and subscribe: node uwebsockets.js PORT
'use strict';
const uWS = require('@trufflesuite/uws-js-unofficial');

uWS
  .App()
  .ws('/*', {
    compression: 0,
    maxPayloadLength: 64 * 1024,
    maxBackpressure: 4 * 1024 * 1024,
    idleTimeout: 120,
    upgrade(res, req, context) {
      res.upgrade(
        { room: req.getQuery('room') },
        req.getHeader('sec-websocket-key'),
        req.getHeader('sec-websocket-protocol'),
        req.getHeader('sec-websocket-extensions'),
        context,
      );
    },
    open(ws) {
      if (ws.room) ws.subscribe(ws.room);
    },
    message(ws, message, isBinary) {
      ws.publish(ws.room, message, isBinary);
    },
  })
  .listen('127.0.0.1', Number(process.argv[2]), (listening) => {
    if (!listening) process.exit(1);
  });
