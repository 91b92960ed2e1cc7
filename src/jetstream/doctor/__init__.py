"""What `jetstream doctor` looks at, before or beside a server, and what it says of each.

Each check has two parts: one that looks at the network or the machine, and a pure one that judges what was
seen. A check returns a `Finding`; only the disk's speed and the ports need something to be written or opened.
"""
