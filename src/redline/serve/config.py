"""A model's configuration: what config.json or config.pbtxt may say, read strictly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from redline.errors import InputError
from redline.serve.pbtxt import parse_pbtxt

MAX_BYTES = 1 << 20
_MICRO = 1e-6
# Fields of Triton's ModelConfig that change nothing here, and are told back as they are.
_TOLD_BACK = {
    "name", "platform", "backend", "runtime", "input", "output", "optimization", "model_warmup",
    "default_model_filename", "cc_model_filenames", "metric_tags", "response_cache",
    "model_operations", "batch_input", "batch_output", "model_metrics",
}  # fmt: skip
_READ = {"max_batch_size", "dynamic_batching", "instance_group", "version_policy", "parameters"}
_LISTS = ("input", "output", "instance_group", "model_warmup")


@dataclass(frozen=True)
class Policy:
    """Which versions of a folder are served."""

    kind: Literal["latest", "all", "specific"] = "latest"
    latest: int = 1
    specific: tuple[int, ...] = ()

    def choose(self, versions: list[int]) -> list[int]:
        """Of the versions that are there, those to serve.

        Example:
            >>> Policy("latest", 2).choose([1, 3, 2])
            [2, 3]
        """
        found = sorted(versions)
        if self.kind == "latest":
            return found[-self.latest :]
        return found if self.kind == "all" else [v for v in found if v in self.specific]

    def told(self) -> dict[str, Any]:
        """As Triton's configuration has it."""
        if self.kind == "all":
            return {"all": {}}
        if self.kind == "specific":
            return {"specific": {"versions": list(self.specific)}}
        return {"latest": {"num_versions": self.latest}}


@dataclass(frozen=True)
class ModelConfig:
    """What the server reads of a configuration; None and 0 leave it to signature and settings.

    Attributes:
        max_batch_size: rows of a batch; 0 for a model that takes what it gets, one by one.
        preferred: batch sizes to aim at.
        delay: seconds that the oldest request of a batch may wait for more.
        queue_size, timeout: of the queue; timeout in seconds.
        override: a request may ask for a shorter timeout.
        late: "REJECT" answers a request that waited too long, "DELAY" puts it behind the others.
        levels, default_priority: 1 is the most urgent level.
        instances, isolation, run_timeout, threads: how its engine runs.
        given: the whole as it was given.
    """

    max_batch_size: int | None = None
    preferred: tuple[int, ...] = ()
    delay: float | None = None
    queue_size: int | None = None
    timeout: float | None = None
    override: bool = True
    late: Literal["REJECT", "DELAY"] = "REJECT"
    levels: int = 0
    default_priority: int = 0
    instances: int | None = None
    isolation: str | None = None
    run_timeout: float | None = None
    threads: int | None = None
    policy: Policy = Policy()
    given: Mapping[str, Any] = field(default_factory=dict)


def read_config(folder: Path) -> dict[str, Any]:
    """What config.json or config.pbtxt in a model's folder says; {} without either.

    Raises:
        InputError: both are there, or it cannot be read.
    """
    found = [folder / name for name in ("config.json", "config.pbtxt")]
    found = [path for path in found if path.is_file()]
    if not found:
        return {}
    if len(found) > 1:
        raise InputError("there is a config.json and a config.pbtxt", hint="keep one of them")
    with found[0].open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    return parse_text(data, is_json=found[0].suffix == ".json")


def parse_text(data: bytes, *, is_json: bool = True) -> dict[str, Any]:
    """A configuration's text as plain data.

    Raises:
        InputError: too long, or not what it should be.
    """
    if len(data) > MAX_BYTES:
        raise InputError(f"the configuration has more than {MAX_BYTES} bytes")
    try:
        text = data.decode("utf-8")
        return msgspec.json.decode(text, type=dict[str, Any]) if is_json else parse_pbtxt(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"the configuration cannot be read: {str(error)[:200]}") from error


def parse_config(given: Mapping[str, Any]) -> ModelConfig:
    """A configuration's meaning. Numbers may be texts, as protobuf's JSON writes them.

    Raises:
        InputError: a field that is unknown, not supported, or of the wrong kind.
    """
    unknown = sorted(set(given) - _TOLD_BACK - _READ)
    if unknown:
        raise InputError(f"the configuration has {unknown[0][:60]!r}, which is not supported")
    told = {name: _listed(value) if name in _LISTS else value for name, value in given.items()}
    batching = _mapping(told.get("dynamic_batching", {}), "dynamic_batching")
    queue = _mapping(batching.get("default_queue_policy", {}), "default_queue_policy")
    parameters = _parameters(told.get("parameters", {}))
    isolation = parameters.get("isolation")
    if isolation not in (None, "thread", "process"):
        raise InputError(f"isolation is {isolation!r}, expected 'thread' or 'process'")
    late = queue.get("timeout_action", "REJECT")
    if late not in ("REJECT", "DELAY", 0, 1):
        raise InputError(f"timeout_action is {late!r}, expected REJECT or DELAY")
    return ModelConfig(
        max_batch_size=_number(told, "max_batch_size"),
        preferred=_preferred(batching),
        delay=_micros(batching, "max_queue_delay_microseconds"),
        queue_size=_number(queue, "max_queue_size") or None,
        timeout=_micros(queue, "default_timeout_microseconds"),
        override=bool(queue.get("allow_timeout_override", not queue.get("default_timeout_microseconds"))),
        late="DELAY" if late in ("DELAY", 1) else "REJECT",
        levels=_number(batching, "priority_levels") or 0,
        default_priority=_number(batching, "default_priority_level") or 0,
        instances=_instances(told.get("instance_group", [])),
        isolation=isolation,
        run_timeout=_seconds(parameters, "run_timeout_seconds"),
        threads=_number(parameters, "threads"),
        policy=_policy(_mapping(told.get("version_policy", {}), "version_policy")),
        given=told,
    )


def _preferred(batching: Mapping[str, Any]) -> tuple[int, ...]:
    sizes = _listed(batching.get("preferred_batch_size", []))
    found = [_number({"preferred_batch_size": size}, "preferred_batch_size") for size in sizes]
    return tuple(sorted({size for size in found if size}))


def _instances(groups: list[Any]) -> int | None:
    total = 0
    for group in groups:
        group = _mapping(group, "instance_group")
        kind = group.get("kind", "KIND_AUTO")
        if kind not in ("KIND_AUTO", "KIND_CPU"):
            raise InputError(f"instance_group asks for {kind!r}, only KIND_CPU is supported")
        count = _number(group, "count")
        total += 1 if count is None else count
    if groups and total < 1:
        raise InputError("instance_group has no instance")
    return total or None


def _policy(told: Mapping[str, Any]) -> Policy:
    if len(told) > 1:
        raise InputError("version_policy names more than one policy")
    for kind, value in told.items():
        value = _mapping(value, kind)
        if kind == "all":
            return Policy("all")
        if kind == "latest":
            return Policy("latest", max(1, _number(value, "num_versions") or 1))
        if kind == "specific":
            versions = [_number({"versions": v}, "versions") for v in _listed(value.get("versions", []))]
            return Policy("specific", specific=tuple(v for v in versions if v is not None))
        raise InputError(f"version_policy {kind[:40]!r} is not latest, all or specific")
    return Policy()


def _parameters(told: Any) -> dict[str, str]:
    """{"key": {"string_value": "v"}}, or as the text format has it a list of key and value."""
    found = {}
    rows = told.items() if isinstance(told, Mapping) and "key" not in told else [
        (row.get("key"), row.get("value", {})) for row in _listed(told) if isinstance(row, Mapping)
    ]  # fmt: skip
    for key, value in rows:
        text = value.get("string_value") if isinstance(value, Mapping) else value
        found[str(key)] = str(text)
    return found


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{name} in the configuration is {value!r:.60}, expected fields")
    return value


def _number(told: Mapping[str, Any], name: str) -> int | None:
    value = told.get(name)
    if value is None:
        return None
    try:
        number = int(value)
    except (TypeError, ValueError):
        raise InputError(f"{name} is {value!r:.60}, expected a whole number") from None
    if isinstance(value, bool | float) or not 0 <= number < 1 << 62:
        raise InputError(f"{name} is {value!r:.60}, expected a whole number of 0 or more")
    return number


def _micros(told: Mapping[str, Any], name: str) -> float | None:
    number = _number(told, name)
    return None if number is None else number * _MICRO


def _seconds(told: Mapping[str, str], name: str) -> float | None:
    if name not in told:
        return None
    try:
        seconds = float(told[name])
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < 1e9:
        raise InputError(f"{name} is {told[name]!r:.60}, expected seconds")
    return seconds
