"""Codes and messages that commands end with, as a program started by a shell shows them."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable

import pytest

from ellips.commands import main
from ellips.commands.ending import REFUSED, STARTED, TRACEBACK, ended, stopping
from ellips.errors import EncoderMismatchError, NotFittedError, WeightsNotFoundError


def failing(error: BaseException) -> Callable[[], int]:
    def work() -> int:
        raise error

    return work


@pytest.mark.parametrize(
    "error",
    [
        ValueError("Expected `a`."),
        EncoderMismatchError("Expected `a`."),
        WeightsNotFoundError("Expected `a`."),
        PermissionError("Expected `a`."),
        NotFittedError("Expected `a`."),
        SystemExit("Expected `a`."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_a_user_can_mend_is_one_message(error: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(failing(error)) == REFUSED == 2
    said = capsys.readouterr().err
    assert said.startswith("error: Expected `a`.\n")
    assert "Traceback" not in said


def test_an_error_without_words_says_its_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(failing(ValueError())) == REFUSED
    assert capsys.readouterr().err.startswith("error: ValueError\n")


def test_mistakes_of_the_program_keep_their_traceback_and_others_show_it_when_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(ZeroDivisionError):
        ended(failing(ZeroDivisionError()))
    monkeypatch.setenv(TRACEBACK, "1")
    with pytest.raises(ValueError, match="a"):
        ended(failing(ValueError("a")))


def test_codes_pass() -> None:
    assert [ended(lambda code=code: code) for code in (0, 1, None)] == [0, 1, 0]  # type: ignore[misc]
    with pytest.raises(SystemExit) as stop:
        ended(failing(SystemExit(143)))
    assert stop.value.code == 143


def test_a_program_prints_what_a_call_raises(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        main(["check", "nowhere.safetensors"])
    monkeypatch.setattr(sys, "argv", ["ellips", "check", "nowhere.safetensors"])
    assert main() == REFUSED
    assert "error: Expected a file of certificates at nowhere.safetensors but there is none." in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_processes_that_were_started_end_too_and_handlers_are_put_back(number: int) -> None:
    told: list[str] = []

    class Process:
        def terminate(self) -> None:
            told.append("end")

    STARTED[:] = [Process()]  # type: ignore[list-item]
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stop, stopping():
            signal.raise_signal(number)
    finally:
        STARTED.clear()
    assert stop.value.code == 128 + number
    assert told == (["end"] if number == signal.SIGTERM else [])  # a terminal sends SIGINT to all of them itself
    assert signal.getsignal(signal.SIGTERM) == before
