"""What `jetstream doctor` looks at, before or beside a server, and what it says of each.

    settings ─▶ look: at the machine, the log, upstreams ─▶ judge ─▶ Finding ─▶ a line, or an object of --json

Each check has two parts: one that looks at the network or the machine, and a pure one that judges what
was seen. A check returns a `Finding`; only the disk's speed and the ports need something to be written
or opened.

    firehose, probe    what answers at each upstream, and what its clock says
    log, database      whether the log can be used and is undamaged
    machine            disk, ports, open files, limits of the kernel
    access             certificate, tokens, proxies, limits per address
    running            what a server that runs says of itself

Nothing here is part of a server. `cli/doctor.py` calls the checks, in the order of the lines.
"""
