"""Under which keys the application and a request keep what handlers need."""

import asyncio
from uuid import UUID

from aiohttp import web

from outbox.core.model import User
from outbox.postgres.pool import Links
from outbox.secrets import SecretBox
from outbox.settings import Settings

SETTINGS = web.AppKey("SETTINGS", Settings)
LINKS = web.AppKey("LINKS", Links)
SECRET_BOX = web.AppKey("SECRET_BOX", SecretBox)

USER = web.RequestKey("USER", User)
"""Who signed in. Set for every route below /v2/."""
REQUEST_ID = web.RequestKey("REQUEST_ID", UUID)
TURN = web.RequestKey("TURN", asyncio.Semaphore)
"""What lets a user's requests have so many connections at a time. Set where USER is."""
