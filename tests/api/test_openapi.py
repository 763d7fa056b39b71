"""The description: it needs no sign-in, resolves within itself, and says what the routes really are."""

import re
from typing import Any

from outbox.api.postbacklogs import FIELDS as LOG_FIELDS
from outbox.api.schemas import digits
from outbox.api.server import add_health
from outbox.core.config_rules import FIELDS
from outbox.settings import Settings
from tests.apis import serving


def references(value: object) -> list[str]:
    match value:
        case dict():
            own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
            return own + [found for each in value.values() for found in references(each)]
        case list():
            return [found for each in value for found in references(each)]
        case _:
            return []


async def test_the_document_fits_the_application(db: str) -> None:
    """Each route but the document's own is in it with its method, and nothing else; each reference leads somewhere."""
    async with serving(Settings(dsn=db), add_health) as api:
        answer = await api.get("/openapi.json")
        described: dict[str, Any] = await answer.json()
        routes = {
            (route.resource.canonical, route.method.lower())
            for route in api.app.router.routes()
            if route.resource and route.method != "HEAD" and route.resource.canonical not in {"/openapi.json", "/docs"}
        }
    assert answer.status == 200
    assert described["openapi"].startswith("3.1.")
    assert {(path, method) for path, operations in described["paths"].items() for method in operations} == routes
    schemas = described["components"]["schemas"]
    parts = {f"#/components/{kind}/{name}" for kind, parts in described["components"].items() for name in parts}
    assert set(references(described)) <= parts
    assert schemas["PostbackConfigCreate"]["properties"].keys() == FIELDS.keys()
    assert schemas["PostbackLog"]["properties"].keys() == LOG_FIELDS.keys() | {"tries"}
    assert "basic_auth_password" not in schemas["PostbackConfig"]["properties"]


def test_digits_are_the_numbers_between_two() -> None:
    """The pattern of a range matches each whole number in it, with zeros in front too, and no other."""
    for least, most in ((1, 5), (1, 86_400), (300, 86_400), (86_400, 86_400), (0, 9), (97, 1203)):
        pattern = re.compile(digits(least, most).replace("$", r"\Z"))
        found = {number for number in range(most + 1200) if pattern.match(str(number))}
        assert found == set(range(least, most + 1))
        assert pattern.match(f"00{most}")
        assert not pattern.match("")


async def test_the_page_asks_no_other_server(db: str) -> None:
    """It is plain HTML without scripts, with every path in it."""
    async with serving(Settings(dsn=db)) as api:
        answer = await api.get("/docs")
        page = await answer.text()
    assert answer.content_type == "text/html"
    assert "/v2/postbacklogs/{id}/replay" in page
    for outside in ("http:", "https:", "<script", "<link", "@import"):
        assert outside not in page
