"""The signing key of each account: where it is found, and how it is kept.

    documents   what DID documents and operations of the PLC directory say: pure
    addresses   where the document of a `did:web` is, and which addresses may be asked: pure
    fetch       one request to a directory, with all its bounds
    public      one request to the host of a `did:web`
    directories several PLC directories, in turn
    store       the keys of all accounts in an SQLite file
    cache       the keys of active accounts in memory, before the store
    resolver    a DID to its key: cache, requests, refreshes
    export      pages of the directory's `/export`: pure
    follower    reads `/export` to its end, and keeps up

Nothing here is imported by a server that checks no signatures.
"""
