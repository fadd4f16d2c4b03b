"""Names the place of records: the path of a file, or the URL of a database, whose password is never shown."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from chameleon.errors import UsageError, unknown

SCHEMES = ("sqlite", "postgresql", "postgres")
_OPTION = re.compile(r"(?<=[?&])(?:ssl)?password=([^&]*)&?", re.IGNORECASE)
_URL = re.compile(r"[a-z][a-z0-9+.]*://.*", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, repr=False)
class Url:
    """The URL of a database. As a text it has no password, so it may be printed and recorded.

    Attributes:
        secret: the URL as it was given.
    """

    secret: str

    def __str__(self) -> str:
        return without_password(self.secret)

    __repr__ = __str__

    @property
    def file(self) -> Path | None:
        """The file of a SQLite database; None for others."""
        if not self.secret.startswith("sqlite"):
            return None
        return Path(unquote(self.secret.partition("://")[2].partition("?")[0].removeprefix("/")))

    def hide(self, text: str) -> str:
        """A text, such as an error's, without the password of this URL."""
        passwords = [_parted(self.secret)[2], *_OPTION.findall(self.secret)]
        for known in (self.secret, *passwords, *map(unquote, passwords)):
            text = text.replace(known, "***") if known else text
        return text


Place = Path | Url
"""Where records are kept."""


def place_of(text: str | Path) -> Place:
    """A place as people write it: the path of a file, `sqlite:///runs/records.db`, or `postgresql://...`.

    Raises:
        UsageError: if it is the URL of something else, or of no database.
    """
    if isinstance(text, Path):
        return text
    scheme, found, rest = text.partition("://")
    if not found:
        return Path(text)
    if scheme not in SCHEMES:
        raise unknown("kind of store", scheme, SCHEMES)
    if not rest.strip("/"):
        raise UsageError(
            f"{without_password(text)} names no database; expected sqlite:///runs/records.db or "
            "postgresql://user@host/database"
        )
    if scheme == "sqlite" and not rest.startswith("/"):
        raise UsageError(f"{without_password(text)}: a file follows after three slashes, such as sqlite:///{rest}")
    return Url(text)


def without_password(url: str) -> str:
    """A URL without the password that it may have before its host, or among its options."""
    scheme, user, password, rest = _parted(url)
    named = f"{user}@" if user else ""
    return _OPTION.sub("", f"{scheme}://{named}{rest}" if user or password else url).rstrip("?&")


def word_without_password(word: str) -> str:
    """A word of a command line, such as `--store=postgresql://...`, without the password of the URL in it."""
    return _URL.sub(lambda found: without_password(found[0]), word)


def _parted(url: str) -> tuple[str, str, str, str]:
    """Scheme, user, password and the rest. Everything up to the last @ is taken for secret: it may not be escaped."""
    scheme, _, rest = url.partition("://")
    given, at, host = rest.rpartition("@")
    user, _, password = given.partition(":")
    return (scheme, user, password, host) if at and (password or "/" not in user) else (scheme, "", "", rest)
