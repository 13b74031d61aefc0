"""Network addresses of clients and proxies: normalised forms and keys."""

from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

_SITE = 64
"""Bits of an IPv6 address that identify a client's network; a client may choose the others freely."""

_MAPPED = 96
"""Bits before the IPv4 address in an IPv4-mapped IPv6 address."""


def plain_address(text: str) -> str:
    """Return an IPv4-mapped IPv6 address, as dual-stack sockets report it, as IPv4; any other text unchanged."""
    try:
        address = ip_address(text)
    except ValueError:
        return text
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def client_key(text: str) -> str:
    """Return the key of a client's rate limits: its IPv4 address, or the 64-bit network of its IPv6 address.

    An IPv6 client may use every address of such a network. Texts that are not addresses, which a misconfigured proxy
    may send, share one key.
    """
    try:
        address = ip_address(plain_address(text))
    except ValueError:
        return ""
    return str(IPv6Network((int(address), _SITE), strict=False)) if isinstance(address, IPv6Address) else str(address)


def network_forms(text: str) -> list[str]:
    """Return a network in each notation of its addresses: an IPv4 network also as IPv4-mapped IPv6, and vice versa."""
    network = ip_network(text)
    if isinstance(network, IPv4Network):
        return [str(network), f"::ffff:{network.network_address}/{_MAPPED + network.prefixlen}"]
    mapped = network.network_address.ipv4_mapped
    if mapped is None or network.prefixlen < _MAPPED:
        return [str(network)]
    return [str(network), f"{mapped}/{network.prefixlen - _MAPPED}"]
