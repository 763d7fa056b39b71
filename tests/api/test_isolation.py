"""Two locations try every route against each other's ids: nothing is seen, nothing is touched."""

import psycopg

from outbox.core.model import Dead
from outbox.settings import Settings
from tests.apis import new_user, serving
from tests.tried import add_config, attach_contacts, try_all

CONFIGS, LOGS = "/v2/postbackconfigs", "/v2/postbacklogs"


async def test_no_route_shows_or_touches_anothers(db: str, conn: psycopg.Connection) -> None:
    """Another's id answers as one that never was; lists and replays leave it out; an operator sees all."""
    attach_contacts(conn)
    configs = {location: add_config(conn, location) for location in "AB"}
    conn.execute("insert into contacts values (1, 'A', 'x'), (2, 'B', 'x')")
    async with await psycopg.AsyncConnection.connect(db, autocommit=True) as daemon:
        tried = await try_all(daemon, Dead("no luck"))
    logs = {location: next(d.event_id for d in tried if d.config_id == config) for location, config in configs.items()}
    state = "select * from outbox.deliveries order by 1, 2", "select * from outbox.postback_configs order by 1"
    before = [conn.execute(each).fetchall() for each in state]
    async with serving(Settings(dsn=db)) as api:
        for mine, other in ("AB", "BA"):
            user = await new_user(db, mine)
            config, log = configs[other], f"{logs[other]}.{configs[other]}"
            for method, path, body in (
                ("GET", f"{CONFIGS}/{config}?expand=postback_logs", None),
                ("PUT", f"{CONFIGS}/{config}", {"postbackconfig": {"is_active": 0}}),
                ("DELETE", f"{CONFIGS}/{config}", None),
                ("GET", f"{LOGS}/{log}", None),
                ("POST", f"{LOGS}/{log}/replay", None),
                ("GET", f"{LOGS}/{logs[other]}.{configs[mine]}", None),
                ("POST", f"{LOGS}/{logs[other]}.{configs[mine]}/replay", None),
            ):
                answer = await api.request(method, path, json=body, headers=user)
                assert answer.status == 404, (method, path)
            for path, key in ((CONFIGS, "postbackconfigs"), (LOGS, "postbacklogs")):
                assert len((await (await api.get(path, headers=user)).json())[key]) == 1
            for query in (
                f"{CONFIGS}?location_id={other}", f"{CONFIGS}?id={config}", f"{LOGS}?postback_config_id={config}",
                f"{LOGS}?changelog_id={logs[other]}", f"{LOGS}?model_id={'AB'.index(other) + 1}",
            ):  # fmt: skip
                body = await (await api.get(query, headers=user)).json()
                assert body["meta"]["pagination"]["totalCount"] == 0, query
            for chosen in (
                {"postback_config_id": str(config)}, {"changelog_id": str(logs[other])},
                {"model_id": "AB".index(other) + 1},
            ):  # fmt: skip
                answer = await api.post(f"{LOGS}/replay", json={"replay": chosen}, headers=user)
                assert (await answer.json())["replay"]["count"] == 0
            wanted = {"location_id": other, "resource": "contact", "url": "https://h/"}
            answer = await api.post(CONFIGS, json={"postbackconfig": wanted}, headers=user)
            assert answer.status == 403
            answer = await api.put(
                f"{CONFIGS}/{configs[mine]}", json={"postbackconfig": {"location_id": other}}, headers=user
            )
            assert answer.status == 403
            answer = await api.post(CONFIGS, json={"postbackconfig": wanted | {"location_id": None}}, headers=user)
            assert answer.status == 422
        assert [conn.execute(each).fetchall() for each in state] == before
        operator = await new_user(db)
        everyones = {"location_id": None, "resource": "contact", "url": "https://h/"}
        for path, key in ((CONFIGS, "postbackconfigs"), (LOGS, "postbacklogs")):
            assert len((await (await api.get(path, headers=operator)).json())[key]) == 2
        everywhere = await api.post(CONFIGS, json={"postbackconfig": everyones}, headers=operator)
        assert everywhere.status == 201
