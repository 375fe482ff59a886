"""Codes and messages that commands end with, as a program started by a shell shows them."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence

import pytest

from ellips.commands import console, main
from ellips.commands.ending import STARTED, stopping
from ellips.commands.messages import BAD_INPUT, DEBUG, in_one_message
from ellips.errors import EncoderMismatchError, NotFittedError, WeightsNotFoundError


def failing(error: BaseException) -> Callable[[Sequence[str]], int]:
    def work(given: Sequence[str]) -> int:
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
    assert in_one_message(failing(error), ["fit"]) == BAD_INPUT == 2
    assert capsys.readouterr().err == "ellips fit: Expected `a`.\n"


def test_an_error_without_words_says_its_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert in_one_message(failing(ValueError()), ["fit"]) == BAD_INPUT
    assert capsys.readouterr().err == "ellips fit: ValueError\n"


def test_mistakes_of_the_program_keep_their_traceback_and_others_show_it_when_asked() -> None:
    with pytest.raises(ZeroDivisionError):
        in_one_message(failing(ZeroDivisionError()), ["fit"])
    with pytest.raises(ValueError, match="a"):
        in_one_message(failing(ValueError("a")), ["fit", DEBUG])


@pytest.mark.parametrize("code", [0, 1, 2, 130, 143])
def test_codes_pass(code: int) -> None:
    assert in_one_message(lambda given: code, []) == code
    assert in_one_message(failing(SystemExit(code)), []) == code


def test_a_program_prints_what_a_call_raises(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        main(["check", "nowhere.safetensors"])
    monkeypatch.setattr(sys, "argv", ["ellips", "check", "nowhere.safetensors"])
    assert console() == BAD_INPUT
    assert "Expected a file of certificates at nowhere.safetensors but there is none." in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_processes_that_were_started_end_too_and_handlers_are_put_back(number: int) -> None:
    told: list[str] = []

    class Process:
        def terminate(self) -> None:
            told.append("end")

    STARTED[:] = [Process()]  # type: ignore[list-item]
    before = signal.getsignal(signal.SIGTERM)
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore SIGINT
    try:
        with pytest.raises(SystemExit) as stop, stopping():
            signal.raise_signal(number)
    finally:
        signal.signal(signal.SIGINT, outside)
        STARTED.clear()
    assert stop.value.code == 128 + number
    assert told == (["end"] if number == signal.SIGTERM else [])  # a terminal sends SIGINT to all of them itself
    assert signal.getsignal(signal.SIGTERM) == before
