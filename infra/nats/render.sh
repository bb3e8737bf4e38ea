#!/bin/sh
# Renders one node's configuration from bicep/modules/nats.conf.tmpl for machines that
# are not made by Bicep.
#
#   ./render.sh SECRETS OUT NODE ZONE HOST ROUTE_HOST...
#
# SECRETS is the folder that make-certs.sh filled. OUT gets what belongs into /etc/nats
# on the node: nats.conf, nats.env (for systemd's EnvironmentFile, or a container's
# env_file) and certs/. NODE is the server's name (nats-1), ZONE what it shares with
# machines that fail together, HOST its own address and ROUTE_HOSTs those of all nodes,
# this one included. One ROUTE_HOST makes a single node without a cluster.
#
# MAX_STORE is the space for events in bytes, which is required: nine tenths of the disk
# under /var/lib/nats are right. CLUSTER is the cluster's name (default gridfan).
#
#   MAX_STORE=107374182400 ./render.sh ~/gridfan-prod out/nats-1 nats-1 1 10.0.0.1 10.0.0.1 10.0.0.2 10.0.0.3
set -eu
umask 077

if [ $# -lt 6 ]; then
  echo "usage: MAX_STORE=BYTES $0 SECRETS OUT NODE ZONE HOST ROUTE_HOST..." >&2
  exit 2
fi
case ${MAX_STORE:-} in
"" | *[!0-9]*) echo "$0: MAX_STORE: want a number of bytes, got \"${MAX_STORE:-}\"" >&2; exit 2 ;;
esac
template=$(cd "$(dirname "$0")/../../bicep/modules" && pwd)/nats.conf.tmpl
secrets=$1 out=$2 node=$3 zone=$4 host=$5
shift 5
cluster=${CLUSTER:-gridfan}
for word in "$node" "$zone" "$host" "$cluster" "$@"; do
  case $word in
  *[!A-Za-z0-9._:-]* | "") echo "$0: \"$word\": want letters, digits and . _ - : only" >&2; exit 2 ;;
  esac
done
route=$(cat "$secrets/passwords/route")

routes= logins=
for r in "$@"; do
  routes="$routes, \"tls://$r:6222\""
  logins="$logins, \"tls://route:$route@$r:6222\""
done
mkdir -p "$out/certs"
sed -e "s|__NODE__|$node|g" -e "s|__ZONE__|$zone|g" -e "s|__IP__|$host|g" -e "s|__CLUSTER__|$cluster|g" -e "s|__ROUTES__|${routes#, }|g" "$template" >"$out/nats.conf"
if [ $# = 1 ]; then
  # A cluster of one has no leader.
  sed '/^cluster {$/,$d' "$out/nats.conf" >"$out/nats.conf.new"
  mv "$out/nats.conf.new" "$out/nats.conf"
fi
cp "$secrets/ca.pem" "$secrets/node.pem" "$secrets/node-key.pem" "$out/certs/"
{
  echo "NATS_PASSWORD='\"$(cat "$secrets/passwords/gridfan")\"'"
  echo "NATS_SYS_PASSWORD='\"$(cat "$secrets/passwords/sys")\"'"
  echo "NATS_ROUTE_PASSWORD='\"$route\"'"
  echo "NATS_ROUTES='[ ${logins#, } ]'"
  echo "NATS_MAX_STORE='$MAX_STORE'"
} >"$out/nats.env"
