"""The event log in a PostgreSQL database, for many machines. Needs asyncpg: the extra `postgresql`.

    every process         store ─▶ follower, following: what is new, in memory
                            └────▶ stored, pool, reader: what is older, in threads
    the one that leads    leading ─▶ beginning ─▶ term ─▶ appender: one row for each append
                                                    └───▶ upkeep ─▶ sealing, folding, erasing, trimming
    commands              export, copying

`schema` has the tables, and `connection` says what an error of the database means. `docs/many-machines.md` is
about operating it.
"""
