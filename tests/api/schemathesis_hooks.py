"""Loaded by schemathesis: what its questions must know and a description can not say."""

import os
from typing import Any

import schemathesis


@schemathesis.hook
def before_load_schema(_context: schemathesis.HookContext, raw_schema: dict[str, Any]) -> None:
    """Narrow the description to what can be guessed, and name rows that there are."""
    schemas, paths = raw_schema["components"]["schemas"], raw_schema["paths"]
    new, changed = schemas["PostbackConfigCreate"], schemas["PostbackConfigChange"]
    for fields in (new["properties"], changed["properties"]):
        # It searched half a minute for a URL of 512 characters that fits the whole pattern. That this says what the
        # rules say is proved in tests/core/test_config_rules.py.
        fields["url"]["pattern"] = r"^https?://[a-z]{1,9}\.example/[a-z]*$"
        # The user's own, another's and all.
        fields["location_id"] = {"enum": ["L", "other", None]}
    # Of a change it depends on what is stored: here it may be anything.
    changed["allOf"] = new["allOf"]
    for name in ("product_transaction_id", "basic_auth_username"):
        changed["properties"][name]["type"] = "string"
    for operations in paths.values():
        for operation in operations.values():
            # No text is a cursor but one that was given out.
            operation["parameters"] = [each for each in operation["parameters"] if each["name"] != "after"]
    for path in ("/v2/postbackconfigs", "/v2/postbacklogs"):
        _narrow_list(paths[path]["get"])
    for path, operations in paths.items():
        if "{id}" in path:
            there = os.environ["LOG_ID" if path.startswith("/v2/postbacklogs") else "CONFIG_ID"]
            for operation in operations.values():
                operation["parameters"][0]["examples"] = {"there": {"value": there}}


def _narrow_list(operation: dict[str, Any]) -> None:
    parameters = {each["name"]: each for each in operation["parameters"]}
    # Times page_size it has an end, which no description of one of them can say.
    del parameters["page"]
    if "state_ts" in parameters["sort"]["schema"]["enum"]:
        # A list of logs can be narrowed by the time that it is sorted by, and by no other.
        del parameters["state_ts"]
        parameters["sort"]["schema"]["enum"] = ["created_ts", "-created_ts"]
    else:
        # With the logs of each config it may be less.
        del parameters["page_size"]
    operation["parameters"] = list(parameters.values())
