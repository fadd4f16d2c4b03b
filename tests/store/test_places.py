"""URLs of stores: what they name, and that no password of one is ever seen."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon.cli import main
from chameleon.error_log import write_log
from chameleon.errors import UsageError
from chameleon.store.open import lines_at
from chameleon.store.place import Url, place_of, without_password, word_without_password

SECRET = "gehe1m"


@pytest.mark.parametrize(
    ("given_url", "shown"),
    [
        ("postgresql://u:gehe1m@h:5432/db", "postgresql://u@h:5432/db"),
        ("postgresql://:gehe1m@h/db?sslmode=require", "postgresql://h/db?sslmode=require"),
        ("postgresql://u@h/db?password=gehe1m&a=b", "postgresql://u@h/db?a=b"),
        ("postgresql:///db?host=/run/pg&PASSWORD=gehe1m", "postgresql:///db?host=/run/pg"),
        ("postgresql://u:gehe1m/with@s?trange@h/db", "postgresql://u@h/db"),
        ("postgresql://h/db", "postgresql://h/db"),
        ("sqlite:///runs/records.db", "sqlite:///runs/records.db"),
    ],
)
def test_a_url_is_shown_without_its_password(given_url: str, shown: str) -> None:
    place = place_of(given_url)
    assert isinstance(place, Url)
    assert str(place) == repr(place) == f"{place}" == without_password(given_url) == shown
    assert word_without_password(f"--store={given_url}") == f"--store={shown}"
    assert SECRET not in place.hide(f"cannot reach {given_url}")


@given(
    user=st.text("abc_", min_size=1),
    password=st.text(st.characters(codec="ascii", exclude_characters="&"), min_size=1),
)
def test_no_password_survives(user: str, password: str) -> None:
    secret = f"<{password}>"
    assert secret not in str(Url(f"postgresql://{user}:{secret}@host/db"))
    assert secret not in Url(f"postgresql://{user}:{secret}@host/db").hide(f"said: {secret}")


def test_what_is_a_file_and_what_is_none() -> None:
    assert place_of("runs/trials.jsonl") == Path("runs/trials.jsonl")
    assert place_of("sqlite:///runs/records.db").file == Path("runs/records.db")  # type: ignore[union-attr]
    assert place_of("sqlite:////tmp/records.db").file == Path("/tmp/records.db")  # type: ignore[union-attr]
    for text, says in (
        ("mysql://h/db", "unknown kind of store 'mysql'"),
        ("postgresqll://h/db", "did you mean postgresql"),
        ("sqlite://records.db", "three slashes"),
        ("postgresql://", "names no database"),
    ):
        with pytest.raises(UsageError, match=says):
            place_of(text)


@pytest.mark.needs("psycopg")
def test_no_message_has_a_password(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"postgresql://u:{SECRET}@127.0.0.1:9/db?password={SECRET}"
    for command in (["records", "list", url], ["report", url], ["records", "merge", str(tmp_path), "-o", url]):
        assert main(command) in (1, 2)
        said = capsys.readouterr()
        assert SECRET not in said.out + said.err
    assert main(["records", "list", url]) == 1
    assert "postgresql://u@127.0.0.1:9/db does not answer" in " ".join(capsys.readouterr().err.split())
    log = write_log("traceback", ["tune", "net", f"--store={url}", url], tmp_path)
    assert log is not None
    assert SECRET not in log.read_text()


@pytest.mark.needs("sqlalchemy")
def test_what_is_no_database(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.db").write_text("no database, but long enough to be one " * 20)
    assert main(["records", "list", f"sqlite:///{tmp_path / 'text.db'}"]) == 1
    assert "file is not a database" in " ".join(capsys.readouterr().err.split())
    assert main(["records", "list", f"sqlite:///{tmp_path / 'none.db'}"]) == 1
    assert "there is no such file" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "empty.db").touch()
    assert main(["records", "list", f"sqlite:///{tmp_path / 'empty.db'}"]) == 1
    assert "holds no records" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(UsageError, match="no URL of a database"):
        lines_at(Url("postgresql://h:port/db"))
