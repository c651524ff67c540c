#!/bin/sh
# The AppJWT of an account, by curl: TOKEN=$(VAULT_ADDR=… VAULT_TOKEN=… sh read-token.sh le81823118) || exit
# VAULT_CACERT, MOUNT (secret) and PREFIX (liveperson/tokens) where they differ. Read it anew every few minutes; it is
# replaced long before it ends.
set -eu
secret=$(curl --silent --show-error --fail --header "X-Vault-Token: $VAULT_TOKEN" \
    ${VAULT_CACERT:+--cacert "$VAULT_CACERT"} "$VAULT_ADDR/v1/${MOUNT:-secret}/data/${PREFIX:-liveperson/tokens}/$1")
token=$(printf '%s' "$secret" | sed -nE 's/.*"access_token":"([^"]+)".*/\1/p')
[ -n "$token" ] || { echo "there is no access_token for $1" >&2; exit 1; }
printf '%s\n' "$token"
