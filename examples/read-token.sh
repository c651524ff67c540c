#!/bin/sh
# Print an account's AppJWT, by curl: TOKEN=$(VAULT_ADDR=… VAULT_TOKEN=… sh read-token.sh le81823118) || exit
# VAULT_CACERT, VAULT_NAMESPACE, MOUNT (secret) and PREFIX (liveperson/tokens) where they differ. Read it again every
# few minutes: it is replaced long before it expires.
set -eu
# from stdin, so that the login does not show in the list of processes; curl sends no header without a value
secret=$(printf 'X-Vault-Token: %s\nX-Vault-Namespace: %s\n' "${VAULT_TOKEN:-}" "${VAULT_NAMESPACE:-}" |
    curl --silent --show-error --fail --max-time 5 --header @- ${VAULT_CACERT:+--cacert "$VAULT_CACERT"} \
        "$VAULT_ADDR/v1/${MOUNT:-secret}/data/${PREFIX:-liveperson/tokens}/$1")
field() { printf '%s' "$secret" | sed -nE "s/.*\"$1\":\"([^\"]+)\".*/\1/p"; }
token=$(field access_token) exp=$(field exp)
[ -n "$token" ] && [ "${exp:-0}" -gt "$(date +%s)" ] || { echo "there is no live AppJWT for $1" >&2; exit 1; }
printf '%s\n' "$token"
