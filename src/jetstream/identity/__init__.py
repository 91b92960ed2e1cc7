"""The signing key and the PDS of each account: where they are found, and how they are kept.

    documents   what DID documents and operations of the PLC directory say: pure
    addresses   where the document of a `did:web` is, which addresses may be asked, hosts of URLs: pure
    fetch       one request to a directory, with all its bounds
    public      one request to the host of a `did:web`
    directories several PLC directories, in turn
    store       the keys of all accounts in an SQLite file
    cache       the keys of active accounts in memory, before the store
    requests    one document, or one audit log: where to ask, and in which turn
    resolver    a DID to its key and its PDS: cache, refreshes
    export      pages of the directory's `/export`: pure
    follower    reads `/export` to its end, and keeps up

How the parts of a running server ask each other:

    admission.keys ──▶ resolver ──▶ cache ──▶ store                memory, then the file
                           │          ▲
                           │          └────── follower ──▶ export  all accounts, as the directory has them
                           └──▶ shared_requests ──▶ requests ──▶ directories ──▶ fetch
                                                        └──▶ public

Nothing here is imported by a server that checks no signatures.
"""
