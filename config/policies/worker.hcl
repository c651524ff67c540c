# What appjwt-worker needs, and nothing else. As it stands it is for the default mounts and prefixes:
#
#   vault policy write appjwt-worker worker.hcl
#
# For others put yours in place of MOUNT and PREFIX:
#
#   sed -e 's|"secret/\(.*\)/liveperson/accounts/|"MOUNT/\1/PREFIX/|' \
#       -e 's|"secret/\(.*\)/liveperson/tokens/|"MOUNT/\1/PREFIX/|' \
#       -e 's|"secret/config"|"MOUNT/config"|' worker.hcl | vault policy write appjwt-worker -
#
# Where the accounts are on KV version 1 leave out the first \1/; for an empty prefix leave out PREFIX/.

# the list of accounts, and their credentials
path "secret/metadata/liveperson/accounts/*" {
  capabilities = ["list"]
}
path "secret/data/liveperson/accounts/*" {
  capabilities = ["read"]
}

# the tokens, and in the metadata of their paths the worker's mark and each account's state
path "secret/data/liveperson/tokens/*" {
  capabilities = ["create", "read", "update"]
}
path "secret/metadata/liveperson/tokens/*" {
  capabilities = ["create", "read", "patch"]
}
# optional: with it --check can tell that the tokens' mount deletes what it is given
path "secret/config" {
  capabilities = ["read"]
}

# its own login, and --check
path "sys/capabilities-self" {
  capabilities = ["update"]
}
path "auth/token/lookup-self" {
  capabilities = ["read"]
}
path "auth/token/renew-self" {
  capabilities = ["update"]
}
path "auth/token/revoke-self" {
  capabilities = ["update"]
}
