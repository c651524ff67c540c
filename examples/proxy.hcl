# Vault Proxy or bao proxy: apps on this machine read http://127.0.0.1:8100/v1/secret/data/liveperson/tokens/… without a
# login of their own. Static secrets are not cached here, so each read is fresh; give your reads a timeout.
#   vault proxy -config=proxy.hcl
vault {
  address = "https://vault.example.com:8200"
  ca_cert = "vault-ca.pem" # where the system does not trust Vault's certificate
}

auto_auth {
  method "approle" {
    # namespace = "brand/eu" # where the token is in one; apps then send it too, as X-Vault-Namespace
    config = {
      role_id_file_path                   = "role_id"
      secret_id_file_path                 = "secret_id"
      remove_secret_id_file_after_reading = false
    }
  }
}

api_proxy {
  use_auto_auth_token = true
}

listener "tcp" {
  address     = "127.0.0.1:8100"
  tls_disable = true
}
