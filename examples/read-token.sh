#!/bin/sh
# The AppJWT of an account, by curl: TOKEN=$(VAULT_ADDR=… VAULT_TOKEN=… sh read-token.sh le81823118)
# Read it anew every few minutes; it is replaced long before it ends.
set -eu
curl --silent --show-error --fail --header "X-Vault-Token: $VAULT_TOKEN" ${VAULT_CACERT:+--cacert "$VAULT_CACERT"} \
    "$VAULT_ADDR/v1/${MOUNT:-secret}/data/${PREFIX:-liveperson/tokens}/$1" |
    sed -nE 's/.*"access_token":"([^"]+)".*/\1/p'
