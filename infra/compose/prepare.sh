#!/bin/sh
# Makes what compose.yaml needs and no repository should have: a certificate authority
# and certificates, a NATS configuration for each node, and .env with passwords. Run it
# again when the certificate has expired; passwords stay. Needs openssl.
#
# GRIDFAN_IMAGE is the image to run (default gridfan:dev, as "make image" and
# "docker load" give it). MAX_STORE is the space for one node's events in bytes
# (default 4 GiB).
set -eu
umask 077
here=$(cd "$(dirname "$0")" && pwd)
out=$here/generated
secrets=$out/secrets

"$here/../nats/make-certs.sh" "$secrets" nats-1 nats-2 nats-3 >/dev/null
for n in 1 2 3; do
  MAX_STORE=${MAX_STORE:-4294967296} "$here/../nats/render.sh" "$secrets" "$out/nats-$n" "nats-$n" "$n" "nats-$n" nats-1 nats-2 nats-3
done
# The certificate of the authority is no secret, and gridfan's user has to read it.
cp "$secrets/ca.pem" "$out/ca.pem"
chmod 0755 "$out"
chmod 0644 "$out/ca.pem"

for name in sender-key grafana; do
  if [ ! -s "$secrets/passwords/$name" ]; then openssl rand -hex 24 >"$secrets/passwords/$name"; fi
done
{
  echo "GRIDFAN_IMAGE=${GRIDFAN_IMAGE:-gridfan:dev}"
  echo "GRIDFAN_ADMIN_TOKEN=$(cat "$secrets/passwords/admin-token")"
  echo "GRIDFAN_NATS_PASSWORD=$(cat "$secrets/passwords/gridfan")"
  echo "GRIDFAN_SENDER_KEY=$(cat "$secrets/passwords/sender-key")"
  echo "GRAFANA_PASSWORD=$(cat "$secrets/passwords/grafana")"
} >"$here/.env"
echo "ready: docker compose -f $here/compose.yaml up -d"
