"""Fields of a request, each checked for what it may hold."""

from typing import Any

from awq_cli.serving.refusals import Refusal

MOST = 2**63 - 1  # where nothing else is


def wrong(name: str, what: str) -> Refusal:
    return Refusal(400, f"{name} {what}", name, "invalid_value")


def mapping(given: dict[str, Any], name: str, known: set[str] | None = None) -> dict[str, Any]:
    """An object, empty where there is none. known: fields that it may have; None: any."""
    value = given.get(name)
    if not isinstance(value, dict | None):
        raise wrong(name, "has to be an object")
    if known is not None and (unknown := sorted((value or {}).keys() - known)):
        raise wrong(name, f"has {unknown[0]}, which nobody knows")
    return value or {}


def flag(given: dict[str, Any], name: str) -> bool:
    value = given.get(name)
    if value not in (None, True, False) or isinstance(value, int) and not isinstance(value, bool):
        raise wrong(name, "has to be true or false")
    return bool(value)


def whole(given: dict[str, Any], name: str, least: int, most: int | None) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if type(value) is not int or not least <= value <= (MOST if most is None else most):
        raise wrong(name, f"has to be a whole number, {_range(least, most)}")
    return value


def number(given: dict[str, Any], name: str, least: float, most: float) -> float | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise wrong(name, f"has to be a number, {_range(least, most)}")
    return value


def _range(least: float, most: float | None) -> str:
    return f"{least} at least" if most is None else f"{least} to {most}"
