#!/bin/sh
# Makes what a NATS cluster for gridfan needs to know: a private certificate authority,
# one certificate for all nodes, and passwords.
#
#   ./make-certs.sh DIRECTORY HOST...
#
# HOSTs are the names and addresses at which nodes are called, by gridfan and by each
# other: for Azure the nodes' addresses (10.20.4.4 10.20.4.5 10.20.4.6). What is in
# DIRECTORY already stays, but for the nodes' certificate, which is made anew: run it
# again before that expires, or with other HOSTs. Passwords are made once; remove
# passwords/NAME to have another.
#
# It prints the commands that export everything under the names that Bicep's
# parameters files read; they name files, so no secret is on the screen:
#
#   eval "$(./make-certs.sh ~/gridfan-prod 10.20.4.4 10.20.4.5 10.20.4.6)"
#
# DAYS is how long the nodes' certificate is valid (default 825), CA_DAYS how long the
# authority (default 3650). Needs openssl 1.1.1 or newer.
set -eu
umask 077

if [ $# -lt 2 ]; then
  echo "usage: $0 DIRECTORY HOST..." >&2
  exit 2
fi
mkdir -p "$1/passwords"
dir=$(cd "$1" && pwd)
shift

names=
first=$1
for host in "$@"; do
  case $host in
  *[!A-Za-z0-9.:-]* | "") echo "$0: \"$host\" is neither a name nor an address" >&2; exit 2 ;;
  *:* | *[!0-9.]*) kind=DNS; case $host in *:*) kind=IP ;; esac ;;
  *) kind=IP ;;
  esac
  names=$names,$kind:$host
done

if [ ! -e "$dir/ca.pem" ]; then
  openssl ecparam -name prime256v1 -genkey -noout -out "$dir/ca-key.pem"
  openssl req -x509 -new -key "$dir/ca-key.pem" -sha256 -days "${CA_DAYS:-3650}" -subj "/CN=gridfan NATS authority" \
    -addext "basicConstraints=critical,CA:TRUE,pathlen:0" -addext "keyUsage=critical,keyCertSign,cRLSign" \
    -out "$dir/ca.pem.new"
  mv "$dir/ca.pem.new" "$dir/ca.pem"
fi

# A node is a server, and to the other nodes a client.
cat >"$dir/node.ext" <<END
basicConstraints=critical,CA:FALSE
keyUsage=critical,digitalSignature
extendedKeyUsage=serverAuth,clientAuth
subjectAltName=${names#,}
END
openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out "$dir/node-key.pem.new"
openssl req -new -key "$dir/node-key.pem.new" -subj "/CN=$first" -out "$dir/node.csr"
openssl x509 -req -in "$dir/node.csr" -CA "$dir/ca.pem" -CAkey "$dir/ca-key.pem" -set_serial "0x$(openssl rand -hex 16)" \
  -sha256 -days "${DAYS:-825}" -extfile "$dir/node.ext" -out "$dir/node.pem.new" 2>"$dir/node.log" || { cat "$dir/node.log" >&2; exit 1; }
openssl verify -CAfile "$dir/ca.pem" "$dir/node.pem.new" >/dev/null
mv "$dir/node-key.pem.new" "$dir/node-key.pem"
mv "$dir/node.pem.new" "$dir/node.pem"
rm -f "$dir/node.csr" "$dir/node.ext" "$dir/node.log"

# Hexadecimal: the same in a URL, a file for systemd and a NATS configuration.
for name in gridfan sys route admin-token; do
  if [ ! -s "$dir/passwords/$name" ]; then
    openssl rand -hex 32 >"$dir/passwords/$name"
  fi
done

quoted=$(printf %s "$dir" | sed "s/'/'\\\\''/g")
while read -r variable file; do
  printf "export %s=\"\$(cat '%s/%s')\"\n" "$variable" "$quoted" "$file"
done <<END
GRIDFAN_NATS_CA ca.pem
GRIDFAN_NATS_NODE_CERT node.pem
GRIDFAN_NATS_NODE_KEY node-key.pem
GRIDFAN_NATS_PASSWORD passwords/gridfan
GRIDFAN_NATS_SYS_PASSWORD passwords/sys
GRIDFAN_NATS_ROUTE_PASSWORD passwords/route
GRIDFAN_ADMIN_TOKEN passwords/admin-token
END
