"""Numbers, settings and times as a report writes them."""

import json
from collections.abc import Mapping
from typing import Any

from trainkit.report.curves import is_percent


def shown(name: str, value: Any) -> str:
    """A result as its metric is shown: percent where it is a fraction, else four digits."""
    if value is None:
        return "none"
    if isinstance(value, (list, tuple)):
        return " to ".join(shown(name, each) for each in value)
    if isinstance(value, float) and is_percent(name):
        return f"{100 * value:.2f} %"
    return number(value)


def number(value: Any) -> str:
    """A number in four digits; a whole one in all of them."""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"
    return str(value)


def setting(value: Any) -> str:
    """A setting as settings.json has it, in few words: "none" is null, lists have commas."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        shown_items = ", ".join(setting(each) for each in value[:20])
        more = f" and {len(value) - 20} more" if len(value) > 20 else ""
        return f"{shown_items}{more}" if value else "none"
    if isinstance(value, Mapping):
        text = json.dumps(value)
        return text if len(text) <= 400 else f"{text[:400]}..."
    return str(value)


def span(seconds: float) -> str:
    """A duration: 45 s, 12 min, 3 h 20 min, 2 d 5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"
