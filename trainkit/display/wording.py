"""Numbers as people say them."""


def counted(number: int | float, noun: str) -> str:
    """A number with its noun: "1 epoch", "2.5 epochs", "1,000 images"."""
    shown = f"{number:,}" if isinstance(number, int) else f"{number:,g}"
    return f"{shown} {noun}" if number == 1 else f"{shown} {noun}s"


def duration(seconds: float) -> str:
    """Seconds as people say them: "about 6 s", "about 12 min", "about 3.5 h", "about 4 days"."""
    if seconds < 100:
        return f"about {seconds:.2g} s"
    if seconds < 100 * 60:
        return f"about {seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"about {seconds / 3600:.1f} h"
    return f"about {seconds / 86400:.1f} days"
