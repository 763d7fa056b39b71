"""Every spelling of an address, and every shape of a URL: what the system would dial, and what we make of it."""

import ipaddress
import socket
from collections.abc import AsyncIterator

import pytest

from outbox.core.config_rules import InvalidConfigError, validate
from outbox.core.model import Failure, FailureKind
from outbox.core.url import UrlFaultError, parse
from outbox.http.guard import Endpoint, Guard
from outbox.http.resolver import Resolver
from outbox.http.sender import Sender
from tests.dials import dialled

# A host as it is written in a URL; the address that the system's getaddrinfo makes of it without asking anybody; and
# why it is refused: "form" for what no config may hold, otherwise the guard's word. A name may be written, and is
# judged when it is dialled; - may be posted to.
V4 = """
1.1.1.1                 1.1.1.1              -
8.8.8.8                 8.8.8.8              -
9.255.255.255           9.255.255.255        -
11.0.0.0                11.0.0.0             -
100.63.255.255          100.63.255.255       -
100.128.0.0             100.128.0.0          -
126.255.255.255         126.255.255.255      -
128.0.0.1               128.0.0.1            -
168.63.129.15           168.63.129.15        -
168.63.129.16           168.63.129.16        metadata
168.63.129.17           168.63.129.17        -
169.253.255.255         169.253.255.255      -
169.255.0.0             169.255.0.0          -
172.15.255.255          172.15.255.255       -
172.32.0.0              172.32.0.0           -
192.0.1.0               192.0.1.0            -
192.167.255.255         192.167.255.255      -
192.169.0.0             192.169.0.0          -
198.17.255.255          198.17.255.255       -
198.20.0.0              198.20.0.0           -
223.255.255.255         223.255.255.255      -
0.0.0.0                 0.0.0.0              unspecified
0.0.0.1                 0.0.0.1              unspecified
0.255.255.255           0.255.255.255        unspecified
10.0.0.0                10.0.0.0             private
10.0.0.1                10.0.0.1             private
10.255.255.255          10.255.255.255       private
100.64.0.0              100.64.0.0           carrier-grade
100.100.100.200         100.100.100.200      metadata
100.100.100.201         100.100.100.201      carrier-grade
100.127.255.255         100.127.255.255      carrier-grade
127.0.0.0               127.0.0.0            loopback
127.0.0.1               127.0.0.1            loopback
127.0.0.53              127.0.0.53           loopback
127.255.255.255         127.255.255.255      loopback
169.254.0.0             169.254.0.0          link-local
169.254.169.254         169.254.169.254      metadata
169.254.170.2           169.254.170.2        link-local
169.254.255.255         169.254.255.255      link-local
172.16.0.0              172.16.0.0           private
172.17.0.1              172.17.0.1           private
172.31.255.255          172.31.255.255       private
192.0.0.0               192.0.0.0            reserved
192.0.0.192             192.0.0.192          reserved
192.0.2.1               192.0.2.1            documentation
192.88.99.1             192.88.99.1          6to4
192.168.0.0             192.168.0.0          private
192.168.255.255         192.168.255.255      private
198.18.0.0              198.18.0.0           benchmarking
198.19.255.255          198.19.255.255       benchmarking
198.51.100.7            198.51.100.7         documentation
203.0.113.7             203.0.113.7          documentation
224.0.0.1               224.0.0.1            multicast
239.255.255.255         239.255.255.255      multicast
240.0.0.1               240.0.0.1            reserved
255.255.255.255         255.255.255.255      reserved
2130706433              127.0.0.1            form
017700000001            127.0.0.1            form
0x7f000001              127.0.0.1            form
0X7F000001              127.0.0.1            form
0x7f.0.0.1              127.0.0.1            form
0x7f.0x0.0x0.0x1        127.0.0.1            form
0177.0.0.1              127.0.0.1            form
0177.0.0.01             127.0.0.1            form
127.1                   127.0.0.1            form
127.0.1                 127.0.0.1            form
127.0.0.01              127.0.0.1            form
127.0.0.0x1             127.0.0.1            form
127.65535               127.0.255.255        form
0                       0.0.0.0              form
0x0                     0.0.0.0              form
00                      0.0.0.0              form
0.0                     0.0.0.0              form
1                       0.0.0.1              form
10.1                    10.0.0.1             form
012.0.0.1               10.0.0.1             form
167772161               10.0.0.1             form
192.168.257             192.168.1.1          form
0xa9fea9fe              169.254.169.254      form
0xA9.0xFE.0xA9.0xFE     169.254.169.254      form
0251.0376.0251.0376     169.254.169.254      form
2852039166              169.254.169.254      form
169.254.43518           169.254.169.254      form
169.16689662            169.254.169.254      form
0x08.0x08.0x08.0x08     8.8.8.8              form
134744072               8.8.8.8              form
127.0.0.1.              -                    form
127.0.0.1..             -                    form
.127.0.0.1              -                    form
127..0.1                -                    form
127.0.0.256             -                    form
256.0.0.1               -                    form
127.0.0.1.1             -                    form
4294967296              -                    form
08.8.8.8                -                    form
0x                      -                    form
127.0.0.0x              -                    form
127.0.0.-1              -                    form
+127.0.0.1              -                    form
%31%32%37.0.0.1         -                    form
127%2e0.0.1             -                    form
127\u30020\u30020\u30021  127.0.0.1            form
\uff11\uff12\uff17.0.0.1  127.0.0.1          form
\u2460\u2461\u2466.\u24ea.\u24ea.\u2460  127.0.0.1  form
1e2.0.0.1               -                    form
127.0.0.1a              -                    name
0x7f.0.0.1.example      -                    name
127.0.0.1.example.      -                    name
localhost               -                    name
localhost.              -                    name
LOCALHOST               -                    name
ip6-localhost           -                    name
xn--strae-oqa.example   -                    name
a_b.example             -                    name
"""
V6 = """
2606:4700:4700::1111    2606:4700:4700::1111  -
2A00:1450::1            2a00:1450::1          -
2001:4860:4860::8888    2001:4860:4860::8888  -
2001:4860:4860:0:0:0:8.8.8.8  2001:4860:4860::808:808  -
2400::1                 2400::1               -
2000::1                 2000::1               -
2003::1                 2003::1               -
3ffe::1                 3ffe::1               -
::                      ::                    unspecified
0:0:0:0:0:0:0:0         ::                    unspecified
::1                     ::1                   loopback
0:0:0:0:0:0:0:1         ::1                   loopback
0000:0000:0000:0000:0000:0000:0000:0001  ::1  loopback
::0.0.0.1               ::1                   loopback
::2                     ::2                   IPv4-compatible
::127.0.0.1             ::127.0.0.1           IPv4-compatible
::7f00:1                ::127.0.0.1           IPv4-compatible
::8.8.8.8               ::8.8.8.8             IPv4-compatible
::ffff:127.0.0.1        ::ffff:127.0.0.1      IPv4-mapped
::FFFF:7F00:1           ::ffff:127.0.0.1      IPv4-mapped
0:0:0:0:0:ffff:7f00:1   ::ffff:127.0.0.1      IPv4-mapped
::ffff:a9fe:a9fe        ::ffff:169.254.169.254  IPv4-mapped
::ffff:8.8.8.8          ::ffff:8.8.8.8        IPv4-mapped
::ffff:0:127.0.0.1      ::ffff:0:7f00:1       reserved
64:ff9b::127.0.0.1      64:ff9b::7f00:1       NAT64
64:ff9b::8.8.8.8        64:ff9b::808:808      NAT64
64:ff9b:1::a9fe:a9fe    64:ff9b:1::a9fe:a9fe  NAT64
64:ff9b:1:7f00:0:100::  64:ff9b:1:7f00:0:100::  NAT64
64:ff9b:2::7f00:1       64:ff9b:2::7f00:1     reserved
64:ff9a:ffff::1         64:ff9a:ffff::1       reserved
100::1                  100::1                reserved
1fff:ffff::1            1fff:ffff::1          reserved
2001::1                 2001::1               Teredo
2001:0:4136:e378:8000:63bf:3fff:fdd2  2001:0:4136:e378:8000:63bf:3fff:fdd2  Teredo
2001:2::1               2001:2::1             benchmarking
2001:10::1              2001:10::1            reserved
2001:20::1              2001:20::1            reserved
2001:1ff::1             2001:1ff::1           reserved
2001:db8::1             2001:db8::1           documentation
2002:7f00:1::1          2002:7f00:1::1        6to4
2002:a9fe:a9fe::        2002:a9fe:a9fe::      6to4
2002:808:808::          2002:808:808::        6to4
3fff::1                 3fff::1               documentation
4000::1                 4000::1               reserved
5f00::1                 5f00::1               reserved
fc00::1                 fc00::1               private
fd00::1                 fd00::1               private
fd00:ec2::254           fd00:ec2::254         metadata
fd00:ec2::253           fd00:ec2::253         private
fd20:ce::254            fd20:ce::254          private
fe80::1                 fe80::1               link-local
fe80::a9fe:a9fe         fe80::a9fe:a9fe       link-local
fe80::5efe:10.0.0.1     fe80::5efe:a00:1      link-local
2606:4700::5efe:10.0.0.1  2606:4700::5efe:a00:1  -
febf::1                 febf::1               link-local
fec0::1                 fec0::1               private
ff02::1                 ff02::1               multicast
ff0e::1                 ff0e::1               multicast
fe80::1%1               fe80::1               form
fe80::1%lo              fe80::1               form
fe80::1%25lo            -                     form
::1%lo                  -                     form
::1%1                   ::1                   form
2606:4700::1%1          2606:4700::1          form
:::1                    -                     form
::1::                   -                     form
1:2:3:4:5:6:7           -                     form
::12345                 -                     form
::ffff:127.1            -                     form
::ffff:0x7f.0.0.1       -                     form
::ffff:127.0.0.01       -                     form
v1.x                    -                     form
127.0.0.1               127.0.0.1             form
localhost               -                     form
"""


def _rows(table: str, form: str) -> list[tuple[str, str | None, str]]:
    rows = [line.split() for line in table.strip().splitlines()]
    return [(form.format(host), None if address == "-" else address, why) for host, address, why in rows]


HOSTS = _rows(V4, "{}") + _rows(V6, "[{}]")

# A URL, and the scheme, host, port and target that are dialled, or the beginning of why it is refused.
URLS: list[tuple[str, tuple[str, str, int, str] | str]] = [
    ("http://h.example", ("http", "h.example", 80, "/")),
    ("HTTPS://H.Example", ("https", "h.example", 443, "/")),
    ("https://h.example.:443/x", ("https", "h.example", 443, "/x")),
    ("http://h.example:443/", ("http", "h.example", 443, "/")),
    ("https://h.example:80/", ("https", "h.example", 80, "/")),
    ("http://h.example:0080/", ("http", "h.example", 80, "/")),
    ("http://h.example:1024/", ("http", "h.example", 1024, "/")),
    ("http://h.example:65535/", ("http", "h.example", 65535, "/")),
    ("http://h.example?q", ("http", "h.example", 80, "/?q")),
    ("http://h.example/?", ("http", "h.example", 80, "/?")),
    ("http://h.example//evil.example/", ("http", "h.example", 80, "//evil.example/")),
    ("http://h.example/../x/./y", ("http", "h.example", 80, "/../x/./y")),
    ("http://h.example/@evil.example", ("http", "h.example", 80, "/@evil.example")),
    ("http://h.example/\\@evil.example", ("http", "h.example", 80, "/\\@evil.example")),
    ("http://h.example?@evil.example:99/", ("http", "h.example", 80, "/?@evil.example:99/")),
    ("http://h.example/%0d%0aHost:%20x", ("http", "h.example", 80, "/%0d%0aHost:%20x")),
    ("http://h.example/http://127.0.0.1/", ("http", "h.example", 80, "/http://127.0.0.1/")),
    ("http://xn--strae-oqa.example/", ("http", "xn--strae-oqa.example", 80, "/")),
    ("http://h.example:22/", "is forbidden: port 22"),
    ("http://h.example:1/", "is forbidden: port 1 "),
    ("http://h.example:25/", "is forbidden: port 25"),
    ("http://h.example:81/", "is forbidden: port 81"),
    ("http://h.example:1023/", "is forbidden: port 1023"),
    ("http://h.example:0/", "must have a port"),
    ("http://h.example:65536/", "must have a port"),
    ("http://h.example:4294967376/", "must have a port"),
    ("http://h.example:/", "must have a port"),
    ("http://h.example:80:80/", "must have a valid host"),
    ("http://h.example:8_0/", "must have a valid host"),
    ("http://h.example:-80/", "must have a valid host"),
    ("http://h.example:+80/", "must have a valid host"),
    ("http://h.example:80%20/", "must have a valid host"),
    ("http://h.example:0x50/", "must have a valid host"),
    ("http://h.example:000080/", "must have a port"),
    ("http://h.example:\u0668\u0660/", "must be printable"),
    ("http://h.example;127.0.0.1/", "must have a valid host"),
    ("http://h.example,127.0.0.1/", "must have a valid host"),
    ("http://h.example: 80/", "must be printable"),
    ("http://good.example@127.0.0.1/", "must not contain a user"),
    ("http://good.example:80@127.0.0.1/", "must not contain a user"),
    ("http://127.0.0.1@good.example/", "must not contain a user"),
    ("http://good.example\\@127.0.0.1/", "must not contain a user"),
    ("http://good.example%40127.0.0.1/", "must have a valid host"),
    ("http://good.example%2f@127.0.0.1/", "must not contain a user"),
    ("http://good.example&@127.0.0.1#@x/", "must not have a fragment"),
    ("http://127.0.0.1\\.good.example/", "must have a valid host"),
    ("http://good.example\\/", "must have a valid host"),
    ("http:\\\\127.0.0.1\\", "must be an absolute"),
    ("http:127.0.0.1", "must be an absolute"),
    ("http:///127.0.0.1/", "must be an absolute"),
    ("http:/127.0.0.1/", "must be an absolute"),
    ("//127.0.0.1/", "must be an absolute"),
    ("127.0.0.1/", "must be an absolute"),
    ("http//127.0.0.1/", "must be an absolute"),
    ("httpx://127.0.0.1/", "must be an absolute"),
    ("file:///etc/passwd", "must be an absolute"),
    ("gopher://127.0.0.1:25/_HELO", "must be an absolute"),
    ("ftp://h.example/", "must be an absolute"),
    ("ws://h.example/", "must be an absolute"),
    ("unix:///var/run/docker.sock", "must be an absolute"),
    ("http+unix://%2fvar%2frun%2fdocker.sock/", "must be an absolute"),
    ("javascript:alert(1)", "must be an absolute"),
    ("data:text/plain,x", "must be an absolute"),
    ("http://h.example/#frag", "must not have a fragment"),
    ("http://h.example#@127.0.0.1/", "must not have a fragment"),
    (" http://h.example/", "must be printable"),
    ("http://h.example/ ", "must be printable"),
    ("http://h.example/\n", "must be printable"),
    ("http://h.example\t/", "must be printable"),
    ("ht\ntp://h.example/", "must be printable"),
    ("http://h.example/\r\nX: y", "must be printable"),
    ("http://h.example/\x7f", "must be printable"),
    ("http://h.example/\u202e", "must be printable"),
    ("http://b\u00fccher.example/", "must be printable"),
    ("http://\u2488.example/", "must be printable"),
    ("http://h\uff0eexample/", "must be printable"),
    ("http://h\u3002example/", "must be printable"),
    ("http://h.ex\u00adample/", "must be printable"),
    ("http\u017f://h.example/", "must be printable"),
    ("http://h.example\uff0f127.0.0.1/", "must be printable"),
    ("http://[127.0.0.1]/", "must have a valid host"),
    ("http://[::1/", "must have a valid host"),
    ("http://::1/", "must have a valid host"),
    ("http://[::1]x/", "must have a valid host"),
    ("http://[[::1]]/", "must have a valid host"),
    ("http://[]/", "must have a valid host"),
    ("http://[::1]:80:80/", "must have a valid host"),
    ("http://./", "must have a valid host"),
    ("http://../", "must have a valid host"),
    ("http://-/", "must have a valid host"),
    ("http://a..b/", "must have a valid host"),
    ("http://*.example/", "must have a valid host"),
    ("http://$HOST/", "must have a valid host"),
    ("http://{host}/", "must have a valid host"),
]


@pytest.fixture
async def shut() -> AsyncIterator[Sender]:
    """A sender whose operator allows nothing beyond the default."""
    async with Sender(timeout=30) as opened:
        yield opened


def test_the_tables_are_as_long_as_they_claim() -> None:
    """At least 150 rows, none of them twice."""
    assert len(HOSTS) + len(URLS) >= 150
    assert len({host for host, _, _ in HOSTS}) == len(HOSTS)
    assert len({url for url, _ in URLS}) == len(URLS)


@pytest.mark.parametrize(("host", "address", "why"), HOSTS)
async def test_a_host_is_what_the_system_would_dial(shut: Sender, host: str, address: str | None, why: str) -> None:
    """Accepted is only the one full spelling of an address; what is refused when written is refused when dialled."""
    assert _as_the_system_reads(host) == address
    url = f"http://{host}/"
    fault = Guard().url_fault(url)
    match why:
        case "form":
            assert fault is not None
            assert fault.startswith(("must have a valid host", "must be printable"))
            expected = FailureKind.RESOLVE
        case "name":
            assert fault is None  # what it means is known when it is dialled
            return
        case "-":
            assert fault is None
            read = parse(url)
            assert ipaddress.ip_address(read.host) == ipaddress.ip_address(address or "")
            assert {each[4][:2] for each in await Resolver().addresses(read.host, read.port)} == {(address, 80)}
            return
        case _:
            assert fault is not None
            assert fault.startswith("is forbidden: ")
            assert why in fault
            expected = FailureKind.FORBIDDEN
    with dialled() as heard:
        result = await shut.post(url, b"", {})
    assert isinstance(result, Failure)
    assert (result.kind, heard) == (expected, [])


def _as_the_system_reads(host: str) -> str | None:
    """Return the address that getaddrinfo makes of a host without asking anybody."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), 80, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return None
    return str(found[0][4][0])


@pytest.mark.parametrize(("url", "expected"), URLS)
async def test_a_url_leads_where_it_is_read_to_lead(
    shut: Sender, url: str, expected: tuple[str, str, int, str] | str
) -> None:
    """What the rules accept is dialled to the letter; what they refuse is not dialled, if it got into the table."""
    if isinstance(expected, tuple):
        scheme, host, port, target = expected
        assert Guard().url_fault(url) is None
        read = parse(url)
        assert (read.is_tls, read.host, read.port, read.target) == (scheme == "https", host, port, target)
        return
    with pytest.raises(InvalidConfigError) as caught:
        validate(
            {"location_id": "L", "resource": "contact", "url": url},
            min_attempt_interval=300,
            url_fault=Guard().url_fault,
        )
    [message] = caught.value.errors["url"]
    assert message.startswith(f"url {expected}")
    with dialled() as heard:
        result = await shut.post(url, b"", {})
    assert isinstance(result, Failure)
    assert result.kind in (FailureKind.RESOLVE, FailureKind.FORBIDDEN)
    assert heard == []


@pytest.mark.parametrize("url", [url for url, expected in URLS if isinstance(expected, str)])
def test_what_is_malformed_has_no_reading(url: str) -> None:
    """There is one reader, so there is no second opinion to dial by."""
    try:
        read = parse(url)
    except UrlFaultError:
        return
    assert Guard().refusal(Endpoint(read.is_tls, read.host, read.port)) is not None


@pytest.mark.parametrize(
    ("guard", "url", "fault"),
    [
        (Guard(require_https=True), "http://h.example/", "is forbidden: http is not allowed, only https."),
        (Guard(require_https=True), "https://h.example/", None),
        (Guard(ports=(range(443, 444), range(8000, 9000))), "https://h.example:8999/", None),
        (
            Guard(ports=(range(443, 444), range(8000, 9000))),
            "https://h.example:9000/",
            "is forbidden: port 9000 is not allowed, only 443, 8000-8999.",
        ),
    ],
)
def test_the_operators_own_rules(guard: Guard, url: str, fault: str | None) -> None:
    """Scheme and port are the operator's to choose."""
    assert guard.url_fault(url) == fault


@pytest.mark.parametrize(
    ("address", "allow", "deny", "refused"),
    [
        ("8.8.8.8", "", "8.8.8.0/24", True),
        ("8.8.9.8", "", "8.8.8.0/24", False),
        ("10.1.1.1", "10.0.0.0/8", "10.1.0.0/16", True),
        ("10.2.1.1", "10.0.0.0/8", "10.1.0.0/16", False),
        ("100.100.100.200", "100.64.0.0/10", "100.100.100.200/32", True),
        ("::1", "::/0", "::1/128", True),
        ("::ffff:10.1.1.1", "::/0", "10.0.0.0/8", True),
        ("::10.1.1.1", "::/0", "10.0.0.0/8", True),
        ("64:ff9b::10.1.1.1", "::/0", "10.0.0.0/8", True),
        ("64:ff9b:1::10.1.1.1", "::/0", "10.0.0.0/8", True),
        ("64:ff9b:1:a01:1:100::", "::/0", "10.0.0.0/8", True),
        ("64:ff9b:1:a:1:101::", "::/0", "10.0.0.0/8", True),
        ("64:ff9b:1:0:a:101:100:0", "::/0", "10.0.0.0/8", True),
        ("64:ff9b:1:808:8:800::", "::/0", "10.0.0.0/8", False),
        ("::ffff:0:10.1.1.1", "::/0", "10.0.0.0/8", True),
        ("2002:a01:101::1", "::/0", "10.0.0.0/8", True),
        ("2001:0:a01:101::1", "::/0", "10.0.0.0/8", True),
        ("2001::f5fe:fefe", "::/0", "10.0.0.0/8", True),
        ("2606::10.1.1.1", "::/0", "10.0.0.0/8", False),
        ("::ffff:8.8.8.8", "::/0", "10.0.0.0/8", False),
    ],
)
def test_a_denied_network_beats_an_allowed_one(address: str, allow: str, deny: str, *, refused: bool) -> None:
    """Also for an IPv6 address that carries a denied IPv4 address."""
    guard = Guard(
        allow=tuple(ipaddress.ip_network(each) for each in allow.split(",") if each),
        deny=tuple(ipaddress.ip_network(each) for each in deny.split(",") if each),
    )
    refusal = guard.address_refusal(address)
    assert (refusal is not None) == refused
    if refusal:
        assert refusal == f"in {deny}, which is denied"
