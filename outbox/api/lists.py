"""What all lists share: the query's page, page size, sort and cursor, and the envelope with its links."""

import base64
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from yarl import URL

from outbox.api.errors import RefusedError

PAGE_SIZE, MAX_PAGE_SIZE = 50, 500
REACH = 10_000
"""The last row that `page` alone reaches: all before it are read and thrown away. `links.next` goes on behind it."""
SHARED = ("page", "page_size", "sort", "after", "expand")


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list is asked for. `after`: the cursor's values, which win over `number`."""

    number: int
    size: int
    sort: str
    descending: bool
    after: tuple[str, ...] | None
    reach: int
    """The last row that a number alone reaches."""

    @property
    def offset(self) -> int:
        """How many rows to pass over."""
        return 0 if self.after else (self.number - 1) * self.size


def is_text(text: str) -> bool:
    """Return whether the database can be asked for it: no NUL, and no half of a character."""
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def refuse(name: str, message: str) -> RefusedError:
    """Return the 422 for a query parameter."""
    return RefusedError(422, f"{name} {message}", field=name)


def read_page(
    request: web.Request, *, filters: Collection[str], sorts: Collection[str], default: str, reach: int = REACH
) -> Page:
    """Return the page that the query asks for; RefusedError 422 for parameters that are unknown, double or wrong."""
    query = request.query
    for name in query:
        if name not in filters and name not in SHARED:
            raise refuse(name, f"is not a parameter here. Accepted: {', '.join((*SHARED, *filters))}.")
        if len(query.getall(name)) > 1:
            raise refuse(name, "is given more than once; separate several values by commas.")
    sort = query.get("sort", default)
    if sort.removeprefix("-") not in sorts:
        raise refuse("sort", f"must be one of {', '.join(sorts)}, with - in front for the reverse.")
    after = _cursor(query["after"], sort) if "after" in query else None
    number = _number(query.get("page", "1"), "page", 10**8)
    size = _number(query.get("page_size", str(PAGE_SIZE)), "page_size", MAX_PAGE_SIZE)
    if after is None and number * size > reach:
        raise refuse(
            "page",
            f"times page_size must be {reach} at most. Follow meta.pagination.links.next, whose `after` goes on from "
            "any page to the next.",
        )
    return Page(number, size, sort.removeprefix("-"), sort.startswith("-"), after, reach)


def expansions(request: web.Request, accepted: Collection[str]) -> set[str]:
    """Return what `expand` names; RefusedError 422 for anything else than `accepted`."""
    found = set(filter(None, request.query.get("expand", "").split(",")))
    if found - set(accepted):
        raise refuse("expand", f"must be of {', '.join(accepted)}, separated by commas.")
    return found


def address(request: web.Request) -> URL:
    """Return the request's URL as its sender knows it: a proxy that ends TLS says so in X-Forwarded-Proto.

    Who makes that header up finds it in the links of his own answer only. It can not make http of https.
    """
    is_tls = request.headers.get("X-Forwarded-Proto", "").strip().lower() == "https"
    return request.url.with_scheme("https") if is_tls else request.url


def meta(request: web.Request, page: Page, *, total: int, capped: bool, following: Collection[str] | None) -> Any:  # noqa: ANN401 - JSON
    """Return `meta`. `following`: the cursor of the next page, None when this is the last."""
    pages = max(1, -(-total // page.size))
    here = address(request)
    links = {"self": {"href": str(here)}}
    if following is not None:
        sort = f"-{page.sort}" if page.descending else page.sort
        cursor = base64.urlsafe_b64encode(json.dumps([sort, *following]).encode()).decode().rstrip("=")
        links["next"] = {"href": str(here.update_query(page=page.number + 1, after=cursor))}
    if not capped and pages * page.size <= page.reach:
        links["last"] = {"href": str(here.without_query_params("after").update_query(page=pages))}
    pagination: dict[str, Any] = {
        "links": links, "totalCount": total, "pageCount": pages, "currentPage": page.number, "perPage": page.size,
    }  # fmt: skip
    if capped:
        pagination["totalCountIsCapped"] = True
    return {"pagination": pagination, "sort": {"attributes": {page.sort: "desc" if page.descending else "asc"}}}


def _number(text: str, name: str, most: int) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= most:
        raise refuse(name, f"must be a whole number from 1 to {most}.")
    return int(text)


def _cursor(text: str, sort: str) -> tuple[str, ...]:
    try:
        found = json.loads(base64.urlsafe_b64decode(text.encode("ascii") + b"=="))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(each, str) and is_text(each) for each in found):
        raise refuse("after", "must be taken from links.next as it is.")
    if found[:1] != [sort]:
        raise refuse("after", "must be taken from links.next of a list with the same sort.")
    return tuple(found[1:])
