# What appjwt-worker needs, and nothing else. For the default mounts and prefixes; change them where yours differ.

# the list of accounts, and their credentials
path "secret/metadata/liveperson/accounts/*" {
  capabilities = ["list"]
}
path "secret/data/liveperson/accounts/*" {
  capabilities = ["read"]
}

# the tokens, and the settings of their paths
path "secret/data/liveperson/tokens/*" {
  capabilities = ["create", "read", "update"]
}
path "secret/metadata/liveperson/tokens/*" {
  capabilities = ["create", "update", "patch"]
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
