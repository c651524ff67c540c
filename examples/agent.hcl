# Vault Agent or bao agent: writes the token into a file that the app reads, and keeps it fresh.
#   vault agent -config=agent.hcl
# The login here is AppRole; in Kubernetes use the method "kubernetes" or the Agent injector with the same template.
vault {
  address = "https://vault.example.com:8200"
  ca_cert = "vault-ca.pem" # where the system does not trust Vault's certificate
}

auto_auth {
  method "approle" {
    # namespace = "brand/eu" # where the token is in one
    config = {
      role_id_file_path                   = "role_id"
      secret_id_file_path                 = "secret_id"
      remove_secret_id_file_after_reading = false
    }
  }
}

template_config {
  static_secret_render_interval = "1m" # a KV secret has no lease: this says how often it is read
}

template {
  destination = "appjwt"
  perms       = "0600"
  contents    = "{{ with secret \"secret/data/liveperson/tokens/le81823118\" }}{{ .Data.data.access_token }}{{ end }}"
}
