"""A relay, a directory and a network of signed repositories, for use with no network at all.

Nothing here is shared with `jetstream.upstream`: what the simulator says is true is a second opinion.
Reading order: `cbor`, `keys`, `mst`, `repo` make a repository; `records` and `world` let accounts live in it;
`frames`, `faults`, `truth` say what goes over the wire and what must come of it; `stream`, `recording` and
`server` send it; `check` judges a commit.
"""
