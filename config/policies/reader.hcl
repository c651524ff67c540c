# What an app needs that reads the token of one account. Put the account's name in place of le81823118, and your mount
# and prefix in place of MOUNT and PREFIX where they are not the defaults:
#
#   sed -e 's|"secret/data/liveperson/tokens/le81823118"|"MOUNT/data/PREFIX/NAME"|' reader.hcl | vault policy write NAME -

path "secret/data/liveperson/tokens/le81823118" {
  capabilities = ["read"]
}
