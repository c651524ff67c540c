"""Hosts that are this machine itself."""

from ipaddress import ip_address


def is_loopback(host: str | None) -> bool:
    """Return True for localhost, 127.0.0.0/8 and ::1. The name is compared, not resolved."""
    if not host:
        return False
    if host.lower().removesuffix(".") == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
