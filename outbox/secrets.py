"""Encrypts what configs keep secret, with OUTBOX_SECRET_KEY. Clear text is never stored and never logged."""

from collections.abc import Sequence

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from outbox.errors import OutboxError, UsageError


class SecretError(OutboxError):
    """A stored secret can not be read with the keys that are set."""


class SecretBox:
    """Seals with the newest key and opens with any of them."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._fernet = MultiFernet([Fernet(key) for key in keys]) if keys else None

    def seal(self, clear: str) -> str:
        """Return the token of a clear text; UsageError when no key is set."""
        if self._fernet is None:
            raise UsageError(
                "OUTBOX_SECRET_KEY is not set, so no secret can be stored. Make a key with: outbox secrets make-key"
            )
        return self._fernet.encrypt(clear.encode()).decode()

    def open(self, token: str) -> str:
        """Return the clear text of a token; SecretError when no key fits."""
        if self._fernet is None:
            raise SecretError("OUTBOX_SECRET_KEY is not set, and a config has a stored secret.")
        try:
            return self._fernet.decrypt(token).decode()
        except InvalidToken:
            raise SecretError("A stored secret can not be read with any key of OUTBOX_SECRET_KEY.") from None
