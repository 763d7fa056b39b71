"""The demo's application: its role, its table of contacts, and how it writes to it. It knows nothing of the outbox."""

import json
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

ROLE = "app"
RESOURCE = "contact"
LOCATION = "23948sdnfia1129i9asf92"
COLUMNS = (
    "id", "location_id", "account_number", "contact_api_id", "company_name", "first_name", "last_name", "email",
    "address", "city", "state", "zip", "home_phone", "cell_phone", "office_phone", "office_ext_phone",
    "email_trx_receipt", "created_ts", "modified_ts", "date_of_birth", "header_message", "header_message_type_id",
    "contact_c1", "contact_c2", "contact_c3", "contact_balance",
)  # fmt: skip
"""The contract's 26 keys of a contact, in its order."""

Record = dict[str, Any]
"""A contact, by column."""

_ID = sql.Placeholder("contact_id")

# Run by the server's superuser. The table is the application's, and the role `app` has no right on the outbox.
DDL = """
create role app login;
grant create on schema public to app;
set role app;
create table public.contacts (
    -- 24 hexadecimal digits in the order of time: 14 of microseconds since 1970, then 10 random ones.
    id text not null default
        lpad(to_hex((extract(epoch from clock_timestamp()) * 1000000)::bigint), 14, '0')
        || left(gen_random_uuid()::text, 8) || right(gen_random_uuid()::text, 2),
    location_id text not null,
    account_number text,
    contact_api_id text,
    company_name text,
    first_name text,
    last_name text not null,
    email text,
    address text,
    city text,
    state text,
    zip text,
    home_phone text,
    cell_phone text,
    office_phone text,
    office_ext_phone text,
    email_trx_receipt boolean not null default false,
    created_ts bigint not null default floor(extract(epoch from now())),
    modified_ts bigint not null default floor(extract(epoch from now())),
    date_of_birth date,
    header_message text,
    header_message_type_id smallint not null default 0,
    contact_c1 text,
    contact_c2 text,
    contact_c3 text,
    contact_balance text,
    constraint contacts_pkey primary key (id),
    constraint contacts_id check (id ~ '^[0-9a-f]{24}$'),
    constraint contacts_location_id check (char_length(location_id) between 1 and 36),
    constraint contacts_last_name check (char_length(last_name) between 1 and 64),
    constraint contacts_header_message_type_id check (header_message_type_id between 0 and 4)
);
reset role;
"""


async def create(conn: psycopg.AsyncConnection, **fields: object) -> Record:
    """Insert a contact, with `last_name` and `location_id` at least, and return it."""
    statement = sql.SQL("insert into contacts ({}) values ({}) returning *").format(
        sql.SQL(", ").join(map(sql.Identifier, fields)), sql.SQL(", ").join(map(sql.Placeholder, fields))
    )
    return await _written(conn, statement, fields)


async def change(conn: psycopg.AsyncConnection, contact_id: str, **fields: object) -> Record:
    """Update fields of a contact, `modified_ts` with them, and return it; LookupError when there is none."""
    statement = sql.SQL(
        "update contacts set {}, modified_ts = floor(extract(epoch from now())) where id = {} returning *"
    ).format(
        sql.SQL(", ").join(sql.SQL("{} = {}").format(sql.Identifier(name), sql.Placeholder(name)) for name in fields),
        _ID,
    )
    return await _written(conn, statement, {**fields, "contact_id": contact_id})


async def save_unchanged(conn: psycopg.AsyncConnection, contact_id: str) -> Record:
    """Update a contact to what it is already, as many an application does; LookupError when there is none."""
    statement = sql.SQL("update contacts set last_name = last_name where id = {} returning *").format(_ID)
    return await _written(conn, statement, {"contact_id": contact_id})


async def delete(conn: psycopg.AsyncConnection, contact_id: str) -> Record:
    """Delete a contact and return what it was; LookupError when there is none."""
    statement = sql.SQL("delete from contacts where id = {} returning *").format(_ID)
    return await _written(conn, statement, {"contact_id": contact_id})


def as_json(record: Record) -> str:
    """Return the JSON that subscribers must receive: compact, raw UTF-8, null kept. Made apart from the product's."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":"), default=str)


async def _written(conn: psycopg.AsyncConnection, statement: sql.Composed, fields: dict[str, object]) -> Record:
    cursor = conn.cursor(row_factory=dict_row)
    await cursor.execute(statement, fields)
    record = await cursor.fetchone()
    if record is None:
        raise LookupError("no such contact")
    return record
