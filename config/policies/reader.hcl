# What an app needs that reads the token of one account. Change the name at the end.
path "secret/data/liveperson/tokens/le81823118" {
  capabilities = ["read"]
}
