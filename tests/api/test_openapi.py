"""The description: it needs no sign-in, resolves within itself, and says what the routes really are."""

from typing import Any

from outbox.api.postbacklogs import FIELDS as LOG_FIELDS
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
    """Each route below /v2/ is in it with its method, and nothing else; each reference leads somewhere."""
    async with serving(Settings(dsn=db)) as api:
        answer = await api.get("/openapi.json")
        described: dict[str, Any] = await answer.json()
        routes = {
            (route.resource.canonical, route.method.lower())
            for route in api.app.router.routes()
            if route.resource and route.resource.canonical.startswith("/v2/") and route.method != "HEAD"
        }
    assert answer.status == 200
    assert described["openapi"].startswith("3.1.")
    assert {(path, method) for path, operations in described["paths"].items() for method in operations} == routes
    schemas = described["components"]["schemas"]
    assert {each.removeprefix("#/components/schemas/") for each in references(described)} <= schemas.keys()
    assert schemas["PostbackConfigCreate"]["properties"].keys() == FIELDS.keys()
    assert schemas["PostbackLog"]["properties"].keys() == LOG_FIELDS.keys() | {"tries"}
    assert "basic_auth_password" not in schemas["PostbackConfig"]["properties"]


async def test_the_page_asks_no_other_server(db: str) -> None:
    """It is plain HTML without scripts, with every path in it."""
    async with serving(Settings(dsn=db)) as api:
        answer = await api.get("/docs")
        page = await answer.text()
    assert answer.content_type == "text/html"
    assert "/v2/postbacklogs/{id}/replay" in page
    for outside in ("http:", "https:", "<script", "<link", "@import"):
        assert outside not in page
