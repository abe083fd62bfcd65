#!/bin/sh
# shellcheck disable=SC2086 # images.sh puts a path in.
# A PostgreSQL in a pod: made on first use in PGDATA [/data/db], over TLS where /tls has a certificate. Everything else is PostgreSQL's default.
# Understands as much of what the official image does as the chart's embedded database asks for. Usage: postgres.sh [postgres ARGUMENT…]
set -eu
export PATH=@POSTGRES@:$PATH PGDATA="${PGDATA:-/data/db}" LC_ALL=C.UTF-8
if [ ! -e "$PGDATA/PG_VERSION" ]; then
    printf '%s' "$POSTGRES_PASSWORD" >/tmp/password
    initdb --username=tarbox --pwfile=/tmp/password --auth-local=trust --auth-host=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8 >/dev/null
    echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
    echo "listen_addresses = '*'
max_connections = 200
unix_socket_directories = '/tmp'" >>"$PGDATA/postgresql.conf"
    rm /tmp/password
    pg_ctl start --wait --silent --log=/tmp/first.log
    psql --host=/tmp --username=tarbox --dbname=postgres --quiet --command='CREATE DATABASE tarbox'
    pg_ctl stop --wait --silent --mode=fast
fi
[ $# -gt 0 ] || set -- postgres
if [ -e /tls/tls.crt ]; then
    # The key has to be nobody else's.
    (umask 077; cat /tls/tls.key >/tmp/tls.key)
    set -- "$@" -c ssl=on -c ssl_cert_file=/tls/tls.crt -c ssl_key_file=/tmp/tls.key
fi
exec "$@"
