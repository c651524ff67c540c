"""Vault: the source of credentials, the destination of tokens."""
