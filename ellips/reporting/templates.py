"""Where the templates of the report are; all text that is put into them is escaped."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ellips.reporting.curves import radius_text


def milliseconds(seconds: float) -> str:
    """Write a time of one image in milliseconds, to three digits or whole."""
    return f"{1000 * seconds:.3g}" if seconds < 1 else f"{1000 * seconds:,.0f}"


TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.filters |= {"milliseconds": milliseconds, "radius": lambda radius: radius_text(radius, 6)}
