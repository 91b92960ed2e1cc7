#!/bin/sh
# A server of PostgreSQL in docker-compose.cluster.yaml: before the image's own entry point. With PRIMARY, and without
# data, it copies that server and becomes its standby. NAME is what the primary knows it by.
set -eu

if [ -n "${PRIMARY:-}" ] && [ ! -s "$PGDATA/PG_VERSION" ]; then
    until pg_basebackup --host="$PRIMARY" --username="$POSTGRES_USER" --pgdata="$PGDATA" \
        --write-recovery-conf --wal-method=stream --checkpoint=fast; do
        sleep 1
    done
fi
exec docker-entrypoint.sh "$@" -c "cluster_name=$NAME"
