"""`jointdiff-client init`: write a site's site.yaml by asking, or from answers. Each answer is checked at once."""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from client import site_config
from client.data_look import look
from client.init_questions import QUESTIONS, Question, as_section
from client.site_config import SITE_FILE
from jointdiff import storage
from jointdiff.data.site_source import read_source
from jointdiff.errors import ConfigError, JointDiffError, nearest

_NEXT = (
    ("jointdiff-client keygen", "make this site's key pair, and send site.pub to the coordinator"),
    ("jointdiff-client preview", "see what the model will see of your data"),
    ("jointdiff-client preflight", "check everything, with the remedy where something is wrong"),
    ("jointdiff-client start", "join"),
)
_PRIVACY = {"epsilon": "epsilon", "delta": "delta", "min-cell-count": "min-cell-count"}


def run(
    folder: Path, *, answers_file: str = "", pairs: Sequence[str] = (), say: Callable[[str], None],
    ask: Callable[[str], str] = input,
) -> Path:  # fmt: skip
    """Write FOLDER/site.yaml and say what comes next.

    Args:
        answers_file: A YAML file of answers by the questions' keys; '' = none.
        pairs: Answers as KEY=VALUE; they win over the file. With either, nothing is asked.
        ask: Takes a prompt and returns an answer, as `input` does.

    Returns:
        The path of site.yaml.

    Raises:
        ConfigError: There is a site.yaml already, or an answer is missing or no good.
        DataError: The data are not there, or not of the form that was said.
    """
    path = folder / SITE_FILE
    if path.exists() or path.is_symlink():
        raise ConfigError(
            f"{path} is there already and is not overwritten: change it with an editor, or move it away first."
        )
    folder.mkdir(parents=True, exist_ok=True)
    given = _given(answers_file, pairs)
    answers = _answered(folder, given, say) if given is not None else _asked(folder, say, ask)
    storage.write_atomic(path, text_of(answers), private=True)
    try:
        site_config.read(path)
    except JointDiffError:
        path.unlink()
        raise
    say(f"Written: {path}")
    say("Next, in this order:")
    where = "" if folder == storage.home_path() else f" --site '{folder}'"
    for command, what in _NEXT:
        say(f"  {command}{where}   {what}")
    return path


def text_of(answers: Mapping[str, str]) -> str:
    """Return an annotated site.yaml: configs/site.example.yaml with the answers in it."""
    text = (importlib.resources.files("configs") / "site.example.yaml").read_text(encoding="utf-8")
    head, marker, rest = text.partition("\nprivacy:")
    sections = {
        "federation": {"server": answers["server"], "ca": answers["ca"], "key": answers["key"]},
        "data": as_section(answers),
    }
    lines = [
        "# This site's own configuration, written by `jointdiff-client init`. An unknown key is an error.",
        "# Paths may be relative to this file's folder. configs/site.example.yaml explains every key.",
        "",
        _dump({"federation": sections["federation"]}),
        _dump({"data": sections["data"]}),
        "# Where this site computes: auto | cpu | cuda | cuda:N.",
        _dump({"device": answers["device"]}),
        "# What follows can only tighten what the server asks; what it forbids is refused with a reason.",
    ]
    for key in _PRIVACY:
        if answers.get(key):
            rest = re.sub(rf"(?m)^  {key}: .*$", f"  {key}: {_number(answers[key])}", rest, count=1)
    assert head and marker, "the example has no section privacy"
    return "\n".join(lines) + "\nprivacy:" + rest


def _given(answers_file: str, pairs: Sequence[str]) -> dict[str, str] | None:
    if not answers_file and not pairs:
        return None
    found: dict[str, Any] = {}
    if answers_file:
        try:
            found = yaml.safe_load(Path(answers_file).expanduser().read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"The answers {answers_file} cannot be read: {error}.") from None
        if not isinstance(found, dict):
            raise ConfigError(f"The answers {answers_file} must be a mapping of keys to values.")
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"Cannot read {pair!r} as KEY=VALUE.")
        found[key] = value
    known = [question.key for question in QUESTIONS]
    for key in found:
        if key not in known:
            raise ConfigError(f"Unknown answer '{key}': {nearest(str(key), known)}")
    return {str(key): "" if value is None else _as_text(value) for key, value in found.items()}


def _as_text(value: Any) -> str:
    if isinstance(value, Mapping):  # of classes
        return "; ".join(
            f"{name}={','.join(map(str, own)) if isinstance(own, list) else own}" for name, own in value.items()
        )  # fmt: skip
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _answered(folder: Path, given: Mapping[str, str], say: Callable[[str], None]) -> dict[str, str]:
    answers: dict[str, str] = {}
    for question in QUESTIONS:
        if not question.applies(answers):
            if given.get(question.key):
                raise ConfigError(f"The answer '{question.key}' does not fit kind {answers['kind']}: leave it out.")
            continue
        answers[question.key] = question.check(given.get(question.key, "") or question.default(answers), answers)
        _show(question, folder, answers, say)
    return answers


def _asked(folder: Path, say: Callable[[str], None], ask: Callable[[str], str]) -> dict[str, str]:
    say(f"Questions for {folder / SITE_FILE}. Enter takes what stands in brackets; Ctrl-C ends without writing.")
    answers: dict[str, str] = {}
    for question in QUESTIONS:
        if not question.applies(answers):
            continue
        while True:
            default = question.default(answers)
            try:
                typed = ask(f"{question.text}{f' [{default}]' if default else ''}: ").strip()
            except EOFError:
                raise ConfigError(
                    f"There is nobody to ask here ('{question.key}' has no answer): give --answers FILE or KEY=VALUE."
                ) from None
            try:
                answers[question.key] = question.check(typed or default, answers)
                _show(question, folder, answers, say)
                break
            except JointDiffError as error:
                answers.pop(question.key, None)
                say(f"  No: {error}")
    return answers


def _show(question: Question, folder: Path, answers: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Look at the data as soon as an answer allows it, and say what is there."""
    if question.shows_data(answers) and (seen := look(read_source(as_section(answers), "your answers", folder))):
        if question.key != "classes":
            say(f"  Found: {seen.text}")
            return
        mentioned = {name for own in answers["classes"].split(";") for name in own.partition("=")[2].split(",")}
        if strange := {name.strip() for name in mentioned} - seen.classes.keys():
            raise ConfigError(
                f"Your data have no class {', '.join(sorted(strange))}; they have {', '.join(seen.classes)}."
            )


def _dump(tree: Mapping[str, Any]) -> str:
    return str(yaml.safe_dump(dict(tree), sort_keys=False, allow_unicode=True, default_flow_style=False))


def _number(text: str) -> str:
    """Return a number as YAML 1.1 reads one: it takes 1e-5 for text."""
    value = float(text)
    if value == int(value):
        return str(int(value))
    return re.sub(r"^(\d+)e", r"\1.0e", repr(value))
