"""The HTTP side: it accepts connections, answers requests, and turns some of them into WebSockets.

In the order in which a connection meets them:

- `listener` accepts it, `connection` reads its requests and writes responses, `server` has the routes;
- `request` and `response` are HTTP/1.1 without I/O;
- `pages` answers `/`, `/health` and `/metrics`; `subscribe` and `parameters` answer `/subscribe`;
- `sink` is the socket of a subscriber from then on, and `websocket` the protocol on it (RFC 6455), without
  I/O.

What clients may do is bounded by `WebLimits`: `pending` has the deadlines and the memory of what is not
complete, `rate_limiter` limits how much may come, and `lingering` discards what comes after the last answer.
"""
