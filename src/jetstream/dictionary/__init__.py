"""The public dictionary, with which clients of the public Jetstream read compressed messages.

It is built into those clients. It was trained on posts of real people, so it is not a part of this package.
It is fetched once, and kept in the data directory:

    file      its name, and what is accepted as it
    fetch     where it comes from; runs in a process of its own
    public    the dictionary of a running server, which starts that process when a client first needs it
"""
