"""A simulated AT Protocol network, offline: a relay, a directory, and accounts with signed repositories.

It shares the encoders of `jetstream.atproto` with the server, but none of its decoders: what the simulator
says is true is a second opinion.

Reading order: `repo` is the repository of an account, `signing` signs its commits, `records` makes records,
`identities` has the directory's log, and `world` has the accounts. `frames` encodes messages, `truth` says
which events must come of them, `faults` damages them, and `verdicts` says what a consumer that verifies must
find. `stream` puts all of it in order for one host, `feed`; `losses` decides what a relay never gets.
`firehose`, `xrpc` and `directory` serve it, on the `server`; `network` puts these parts together. `recording`
reads and writes recordings, `recorder` makes one of a real relay. `check` verifies a commit.
"""
