#!/bin/sh
# The same calls by a shell loop around the command line of OpenBao, which cannot ask Sentinel.
set -eu
export BAO_ADDR="$BENCH_VAULT" BAO_TOKEN="$BENCH_TOKEN" BAO_CACERT="$BENCH_VAULT_CA"
done=0
for name in $(jq -r '.[]'); do
    stored=$("$BENCH_BAO" kv get -format=json "secret/liveperson/tokens/$name")
    account=$("$BENCH_BAO" kv get -format=json "secret/liveperson/accounts/$name")
    token=$(printf %s "$account" | jq -r '.data.data | @uri "client_id=\(.client_id)&client_secret=\(.client_secret)"' |
        curl --silent --fail --cacert "$BENCH_SENTINEL_CA" --data @- \
            "https://$BENCH_SENTINEL/sentinel/api/account/$name/app/token?v=1.0&grant_type=client_credentials" |
        jq -r .access_token)
    printf %s "$stored" | jq --arg token "$token" '.data.data + {access_token: $token}' |
        "$BENCH_BAO" kv put -cas="$(printf %s "$stored" | jq .data.metadata.version)" \
            "secret/liveperson/tokens/$name" - >/dev/null
    done=$((done + 1))
done
echo "$done"
