"""The HTTP side: it accepts connections, answers requests, and turns some of them into WebSockets.

In the order in which a connection meets them:

- `listener` accepts connections, `arrival` has what comes before HTTP, and `access` who may connect;
- `server` has the routes, `connection` reads requests and writes responses;
- `http` is HTTP/1.1 without I/O, and `head_reader` makes requests of bytes;
- `pages` answers `/health` and `/metrics`, `front_page` `/`, and `openapi` `/openapi.json`;
- `subscribe` answers a request to subscribe: `dialect` has what differs between the endpoints, `parameters`
  what a request asks for;
- `client` ties a subscriber to delivery. `sink` is its socket from then on, and `websocket` the protocol on
  it (RFC 6455), without I/O. `event_stream` and `stream_sink` are the same for `/events`.

What clients may do is bounded by `WebLimits`: `pending` has the deadlines and the memory of what is not
complete, and discards what comes after the last answer; `websocket` limits how much may come;
`address_limits` has what all clients of one address may have.

Everything runs on the thread of one event loop. What takes long is done in steps (`scheduling.Worker`).
Modules that begin with `Pure` have no I/O, no clock and no event loop.
"""
