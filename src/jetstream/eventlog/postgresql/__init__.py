"""The event log in a PostgreSQL database, for many machines. Needs asyncpg: the extra `postgresql`."""
