# What someone needs who watches: --status for every account, and no credential. A token can be read with it, too.
# As it stands it is for the default mounts and prefixes. For others put yours in place of MOUNT and PREFIX:
#
#   sed -e 's|"secret/\(.*\)/liveperson/accounts/|"MOUNT/\1/PREFIX/|' \
#       -e 's|"secret/\(.*\)/liveperson/tokens/|"MOUNT/\1/PREFIX/|' auditor.hcl | vault policy write appjwt-auditor -
#
# Where the accounts are on KV version 1 leave out the first \1/.

path "secret/metadata/liveperson/accounts/*" {
  capabilities = ["list"]
}
path "secret/data/liveperson/tokens/*" {
  capabilities = ["read"]
}
# why an account has no token yet
path "secret/metadata/liveperson/tokens/*" {
  capabilities = ["read"]
}

# its own login
path "auth/token/lookup-self" {
  capabilities = ["read"]
}
path "auth/token/revoke-self" {
  capabilities = ["update"]
}
