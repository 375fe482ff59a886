"""What a user reads when something is wrong: one message, with what was expected, what came and the cure."""

from __future__ import annotations

import logging
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NoReturn

import jsonargparse
from rich.console import Console

from ellips.errors import NotFittedError
from ellips.files import read_configuration

BAD_INPUT: Final = 2
"""The exit code where what the user gave cannot be used."""

DEBUG: Final = "--debug"

_KNOWN: Final = (ValueError, TypeError, OSError, ImportError, NotFittedError)
_LONGEST = 1200  # characters of a message; what is more goes to --debug

# What the system says of a path, in other words.
_PATHS: Final = {
    FileExistsError: "expected a folder, or room for one, but there is a file of that name; give another.",
    NotADirectoryError: "expected folders only on the way there but one of them is a file; give another path.",
    IsADirectoryError: "expected a file but it is a folder.",
}
# What others say without a cure.
_CURES: Final = (
    (
        "No supported gpu backend found",
        "Without a GPU that torch can use: --trainer.accelerator cpu, or auto.",
    ),
    ("accelerator is not available", "--trainer.accelerator cpu, or auto, works on every machine."),
    ("numpy accepts from 0 to", "It is --seed_everything that is out of range."),
)
# What jsonargparse says around the one line that tells what is wrong.
_NOISE: Final = re.compile(
    r"\s*(Does not validate against any of the Union subtypes|Subtypes: .*|Errors:|Given value type: .*"
    r"|- Expected a <class '(NoneType|.*\.Iterable|bool)'>|- Does not validate .*"
    r"|Given value: (Namespace|NestedArg|\{).*)"
)
# What it says of types that were tried, too, and tells nothing where another line does.
_ASIDE: Final = re.compile(
    r"\s*(- Expected a path but .* either not accessible or invalid"
    r"|- Import path .* does not correspond to a subclass of .*|Parser key .*|Given value: .*)"
)
_UNKNOWN_CLASS: Final = re.compile(r"- Expected a dot import path string: (\S+)")
_ABOUT_CLASSES: Final = r"- There is no class \1; give the name of one, or its whole path, such as my_module.\1"
_WORKER: Final = re.compile(r"Caught (\w+) in .*?\nOriginal Traceback.*\n[\w.]*\1: (.*)", re.DOTALL)
# Settings of version 0.1's training of 1-Lipschitz encoders that went to `architecture`.
_MOVED: Final = ("image_shape", "channels", "widths", "feature_dim")
_TIPS: Final = ("💡", "TPU available", "HPU available", "`Trainer(")
_WARNINGS: Final = (
    r".*does not have many workers",
    r".*`srun` command is available",
    r".*isinstance\(treespec, LeafSpec\)",
    r".*skip_none parameter was deprecated",
    r".*number of training batches .* is smaller than the logging interval",
    r"Checkpoint directory .* exists and is not empty",
)


_running = ""  # the command that goes on in this process, for parsers that do not know it


class Brief:
    """A parser that says what is wrong, and not all that would be right, and takes options by their whole names."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **options})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one message and end with the exit code 2."""
        parser: Any = getattr(ex, "subcommand_parser", None) or self
        prog = parser.prog.replace(" [options]", "")
        if " " not in prog:  # one that the parser made for itself, of some class's arguments
            prog = _running or prog
        print(f"{prog}: {brief(message)}{_nearest(message, parser)}\nAll options: {prog} --help", file=sys.stderr)
        raise SystemExit(BAD_INPUT)


class Parser(Brief, jsonargparse.ArgumentParser):
    """jsonargparse's parser with short messages."""


def brief(message: str) -> str:
    """Return a message without what surrounds its point: types that were tried, tracebacks of reading processes."""
    message = _UNKNOWN_CLASS.sub(_ABOUT_CLASSES, message)
    if caught := _WORKER.match(message):
        message = caught[2]
    lines = [line for line in message.strip().splitlines() if line.strip() and not _NOISE.fullmatch(line)]
    lines = list(dict.fromkeys(lines))  # what is said of an entry, and of the list that it stands in
    if not all(map(_ASIDE.fullmatch, lines)):
        lines = [line for line in lines if not _ASIDE.fullmatch(line) or "- " not in line]
    lines = [re.sub(r"^\s*- ", "", lines[0])] if len(lines) == 1 else lines
    text = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", "\n".join(lines)) or message.strip()
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ... ({DEBUG} shows all)"


def _nearest(message: str, parser: Any) -> str:  # noqa: ANN401 - any parser
    """Return the names of options that are written like those that are unknown, or what they are called by now."""
    moved = [name for name in _MOVED if re.search(rf"[oO]ption '{name}'|--model\.(init_args\.)?{name}\b", message)]
    if moved and _running == "ellips train-encoder":
        now = " and ".join(f"model.architecture.init_args.{name}" for name in moved)
        return f"\nThe sizes of the network are those of its architecture now: {now}."
    options = [name for action in parser._actions for name in action.option_strings if name.startswith("--")]
    unknown = re.findall(r"(?<![\w-])(--[\w.]+)", message) if "unrecognized" in message else []
    unknown += [f"--{name}" for name in re.findall(r"[oO]ption '([\w.]+)'", message)]
    near = [match for name in unknown for match in get_close_matches(name, options, n=1, cutoff=0.75)]
    return f"\nDid you mean {' and '.join(dict.fromkeys(near))}?" if near else ""


def message_of(error: BaseException) -> str | None:
    """Return what to tell of an error that a user can mend; None: it may be a fault of the program's."""
    text = str(error)
    if isinstance(error, RuntimeError) and "loading state_dict" in text:
        differing = [line.strip() for line in text.splitlines()[1:4]]
        return (
            "Expected the model that the checkpoint holds but the configuration describes another; give the "
            f"configuration that it was trained with. {' '.join(differing)}"
        )
    if isinstance(error, RuntimeError) and text.startswith("Early stopping conditioned on metric"):
        return brief(text)
    # Lightning is not imported for its name alone: many commands do without.
    if not isinstance(error, _KNOWN) and type(error).__name__ != "MisconfigurationException":
        return None
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        return f"{error.filename}: {_PATHS.get(type(error), f'{error.strerror}.')}"
    cure = next((cure for part, cure in _CURES if part in text), "")
    joint = "" if not cure else " " if text[-1] in ".!" else ". "
    return brief(text) + joint + cure or type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Keep other libraries' advertisements, hints and deprecations from the user, who can do nothing about them."""

    def wanted(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(_TIPS)

    loggers = [logging.getLogger(name) for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric")]
    for logger in loggers:
        logger.addFilter(wanted)
    try:
        with warnings.catch_warnings():
            for kind in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
                warnings.filterwarnings("ignore", category=kind)
            for text in _WARNINGS:
                warnings.filterwarnings("ignore", message=f"(?s){text}")
            yield
    finally:
        for logger in loggers:
            logger.removeFilter(wanted)


def say(text: str) -> None:
    """Print to stderr as it is."""
    Console(stderr=True, soft_wrap=True).print(text, markup=False, highlight=False)


def _read_configurations(given: Sequence[str]) -> None:
    """Refuse configurations that are no YAML by their names; the parsers know their text alone by then."""
    pairs = pairwise(given)
    paths = [path for option, path in pairs if option in ("--config", "-c")]
    paths += [word.removeprefix("--config=") for word in given if word.startswith("--config=")]
    for path in paths:
        if Path(path).is_file():
            read_configuration(Path(path))


def in_one_message(command: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """Run a command for a user at a terminal, or in a batch job.

    Args:
        command: Takes the command line without the program's name and returns the exit code.
        arguments: The command line. ``--debug``, anywhere in it, shows everything: tracebacks and warnings.

    Returns:
        The exit code: 2 for what a user can mend, 130 after Ctrl-C.
    """
    given = [word for word in arguments if word != DEBUG]
    if len(given) < len(arguments):
        return command(given)
    global _running
    name = _running = " ".join(["ellips", *given[:1]])
    try:
        with quiet():
            _read_configurations(given)
            return command(given)
    except KeyboardInterrupt:
        stopped, code = True, 128 + signal.SIGINT
    except SystemExit as stop:
        if isinstance(stop.code, str):
            say(f"{name}: {stop.code}")
            return BAD_INPUT
        code = 1 if stop.code is None else int(stop.code)
        stopped = code in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    except Exception as error:
        text = message_of(error)
        if text is None:
            raise
        say(f"{name}: {text}")
        return BAD_INPUT
    if stopped:
        again = " with --ckpt_path last" if given[:1] == ["fit"] else ""
        say(f"{name}: stopped. What was finished is kept; the same command{again} goes on from there.")
    return code
