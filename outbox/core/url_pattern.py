"""What a config's `url` may be, as one regular expression: for those who check before they ask.

The rules themselves, with a message for each fault, stand in config_rules.py; a test holds the two together.
"""

_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"(?:{_BYTE}\.){{3}}{_BYTE}"
_GROUP = "[0-9A-Fa-f]{1,4}"


def _before(groups: int) -> str:
    return f"{_GROUP}(?::{_GROUP}){{{groups - 1}}}" if groups else ""


# `::` stands for one group at least; an IPv4 address at the end counts for two.
_IPV6 = "|".join(
    [
        _before(8),
        f"{_before(6)}:{_IPV4}",
        *(f"{_before(n)}::(?:{_GROUP}(?::{_GROUP}){{0,{6 - n}}})?" for n in range(7)),
        f"{_before(7)}::",
        *(f"{_before(n)}::(?:{_GROUP}:){{0,{5 - n}}}{_IPV4}" for n in range(6)),
    ]
)
_LABEL = "[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
# A last label that is a number would be read as an address.
_NAME = (
    r"(?=[A-Za-z0-9._-]{1,253}(?:[:/?]|$))"
    rf"(?:{_LABEL}\.)*(?!(?:[0-9]+|0[xX][0-9A-Fa-f]*)\.?(?:[:/?]|$)){_LABEL}\.?"
)
_PORT = "(?!0+(?:[/?]|$))(?:[0-5]?[0-9]{1,4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"

URL_PATTERN = rf'^[Hh][Tt][Tt][Pp][Ss]?://(?:{_IPV4}|\[(?:{_IPV6})\]|{_NAME})(?::{_PORT})?(?:[/?][!"$-~]*)?$'
"""Without look-behind, named groups or flags: JavaScript, Python and Rust read it alike."""
