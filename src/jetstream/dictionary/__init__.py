"""The dictionaries that messages are compressed with.

The public one is built into clients of the public Jetstream. It was trained on posts of real people, so it is
not a part of this package. It is fetched once, and kept in the data directory. Our own one is a part of the
package, and clients fetch it from the server.

    file      the file of the public one: its name, and what is accepted as it
    fetch     where that file comes from; runs in a process of its own
    public    the public one of a running server, which starts that process when a client first needs it
    own       our own one
    choice    which of them a request selects
"""
