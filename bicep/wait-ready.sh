#!/bin/sh
# Waits until gridfan answers Event Grid's handshake, for each source that Event Grid
# delivers to. Without that, the deployment of the event subscriptions fails.
#
#   ROUTER_URL       where gridfan is: the output of main.bicep (https://...)
#   INGRESS_SOURCES  names of the sources, separated by blanks: likewise
#   WAIT_SECONDS     how long to wait for all of them, 900 unless set
#   WAIT_INTERVAL    seconds between two tries, 5 unless set
#   WAIT_TIMEOUT     seconds that one try may take, 10 unless set
#
# Ends with 0 when all have answered, with 1 when the time is up, and with 2 when it
# was not told what to ask.
set -eu

if [ -z "${ROUTER_URL:-}" ] || [ -z "${INGRESS_SOURCES:-}" ]; then
	echo "wait-ready: ROUTER_URL and INGRESS_SOURCES are not set: deploy main.bicep first, and put its outputs into the environment" >&2
	exit 2
fi
if ! command -v curl >/dev/null; then
	echo "wait-ready: curl is missing" >&2
	exit 2
fi

origin=eventgrid.azure.net
deadline=$(($(date +%s) + ${WAIT_SECONDS:-900}))

# ask URL: whether the handshake is answered; said has the status, or curl's error.
ask() {
	said=$(curl --silent --show-error --max-time "${WAIT_TIMEOUT:-10}" --request OPTIONS \
		--header "WebHook-Request-Origin: $origin" --dump-header - --output /dev/null "$1" 2>&1) || return 1
	answer=$(printf '%s\n' "$said" | tr -d '\r')
	said=$(printf '%s\n' "$answer" | sed -n '1p')
	case $said in
	HTTP/*' 200'*) ;;
	*) return 1 ;;
	esac
	allowed=$(printf '%s\n' "$answer" | sed -n 's/^[Ww][Ee][Bb][Hh][Oo][Oo][Kk]-[Aa][Ll][Ll][Oo][Ww][Ee][Dd]-[Oo][Rr][Ii][Gg][Ii][Nn]: *//p')
	case $allowed in
	"$origin" | '*') return 0 ;;
	esac
	said="$said, but it allows the origin \"$allowed\", not $origin"
	return 1
}

for source in $INGRESS_SOURCES; do
	url=${ROUTER_URL%/}/ingress/$source
	until ask "$url"; do
		if [ "$(date +%s)" -ge "$deadline" ]; then
			echo "wait-ready: $url does not answer the handshake: $said" >&2
			echo "wait-ready: see whether its replicas run: az containerapp logs show -g \$AZURE_RESOURCE_GROUP -n \$ROUTER_NAME --tail 50" >&2
			exit 1
		fi
		echo "waiting for $url: $said"
		sleep "${WAIT_INTERVAL:-5}"
	done
	echo "$url answers"
done
