#!/bin/sh
# The same calls by a shell loop around curl and jq.
set -eu
done=0
vault() {
    path=$1
    shift
    curl --silent --fail --cacert "$BENCH_VAULT_CA" --header "X-Vault-Token: $BENCH_TOKEN" "$@" \
        "$BENCH_VAULT/v1/secret/data/liveperson/$path"
}
for name in $(jq -r '.[]'); do
    stored=$(vault "tokens/$name")
    account=$(vault "accounts/$name")
    token=$(printf %s "$account" | jq -r '.data.data | @uri "client_id=\(.client_id)&client_secret=\(.client_secret)"' |
        curl --silent --fail --cacert "$BENCH_SENTINEL_CA" --data @- \
            "https://$BENCH_SENTINEL/sentinel/api/account/$name/app/token?v=1.0&grant_type=client_credentials" |
        jq -r .access_token)
    printf %s "$stored" | jq --arg token "$token" \
        '{options: {cas: .data.metadata.version}, data: (.data.data + {access_token: $token})}' |
        vault "tokens/$name" --data @- >/dev/null
    done=$((done + 1))
done
echo "$done"
