"""Maintains a live LivePerson AppJWT for every account in HashiCorp Vault or OpenBao."""
