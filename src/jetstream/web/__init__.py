"""The HTTP side: it accepts connections, answers requests, and turns some of them into WebSockets.

In the order in which a connection meets them:

- `server` has the routes and accepts connections, `connection` reads requests and writes responses;
- `http` is HTTP/1.1 without I/O;
- `pages` answers `/`, `/health` and `/metrics`, and `openapi` `/openapi.json`; `subscribe` and `parameters`
  answer `/subscribe`;
- `sink` is the socket of a subscriber from then on, and `websocket` the protocol on it (RFC 6455), without
  I/O.

What clients may do is bounded by `WebLimits`: `pending` has the deadlines and the memory of what is not
complete, and discards what comes after the last answer; `websocket` limits how much may come.
"""
