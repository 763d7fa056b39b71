"""Encrypts what configs keep secret, with OUTBOX_SECRET_KEY. Clear text is never stored and never logged."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from outbox.core import signing
from outbox.core.signing import Secret
from outbox.errors import OutboxError, UsageError

if TYPE_CHECKING:
    from cryptography.fernet import Fernet, MultiFernet


class SecretError(OutboxError):
    """A stored secret can not be read with the keys that are set."""


class SecretBox:
    """Seals with the newest key and opens with any of them. Only with a key the library is loaded: it takes 6 MB."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._newest: Fernet | None = None
        self._all: MultiFernet | None = None
        if keys:
            from cryptography import fernet  # noqa: PLC0415

            self._newest = fernet.Fernet(keys[0])
            self._all = fernet.MultiFernet([fernet.Fernet(key) for key in keys])
            self._invalid = fernet.InvalidToken

    def seal(self, clear: str) -> str:
        """Return the token of a clear text; UsageError when no key is set."""
        if self._newest is None:
            raise UsageError(
                "OUTBOX_SECRET_KEY is not set, so no secret can be stored. Make a key with: outbox secrets make-key"
            )
        return self._newest.encrypt(clear.encode()).decode()

    def open(self, token: str) -> str:
        """Return the clear text of a token; SecretError when no key fits."""
        if self._all is None:
            raise SecretError("OUTBOX_SECRET_KEY is not set, and a config has a stored secret.")
        try:
            return self._all.decrypt(token).decode()
        except self._invalid:
            raise _unreadable() from None

    def reseal(self, token: str) -> str:
        """Return the token of the same clear text by the newest key: itself when it is. Raises as `open` does."""
        if self._newest is None or self._all is None:
            raise UsageError("OUTBOX_SECRET_KEY is not set: name the new key, and after it the old ones, by commas.")
        try:
            self._newest.decrypt(token)
        except self._invalid:
            try:
                return self._all.rotate(token).decode()
            except self._invalid:
                raise _unreadable() from None
        return token


def open_signing_secrets(box: SecretBox, token: str | None) -> tuple[Secret, ...]:
    """Return what signs of a config, from what is stored; none of None. SecretError when it can not be read."""
    if token is None:
        return ()
    opened = box.open(token)
    try:
        return signing.load(opened)
    except ValueError:
        raise SecretError("What is stored as the config's signing secrets is something else.") from None


def _unreadable() -> SecretError:
    return SecretError("A stored secret can not be read with any key of OUTBOX_SECRET_KEY.")
