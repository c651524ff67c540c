# What someone needs who watches: --status for every account, and no credential. A token can be read with it, too.
path "secret/metadata/liveperson/accounts/*" {
  capabilities = ["list"]
}
path "secret/data/liveperson/tokens/*" {
  capabilities = ["read"]
}
