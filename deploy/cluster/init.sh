#!/bin/sh
# Runs once, when the database is created. Its standby has the same settings, since it is a copy.
set -eu

# Commits wait until the other server has them, whichever is the primary.
psql --quiet --set=ON_ERROR_STOP=1 --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" <<'SQL'
ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 ("postgres-1", "postgres-2")';
ALTER SYSTEM SET max_wal_size = '2GB';
SQL
echo "host replication $POSTGRES_USER samenet scram-sha-256" >> "$PGDATA/pg_hba.conf"
