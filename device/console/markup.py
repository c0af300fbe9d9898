"""HTML and SVG from Python values; whatever is text is escaped."""

from html import escape


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def element(tag: str, *content: str, **attributes: str | float) -> Markup:
    """`<tag attributes>content</tag>`; `_` in an attribute's name stands for `-`, one at its end is dropped."""
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(str(value))}"' for name, value in attributes.items()
    )
    inner = "".join(piece if isinstance(piece, Markup) else escape(piece) for piece in content)
    return Markup(f"<{tag}{named}>{inner}</{tag}>")


def joined(*pieces: Markup) -> Markup:
    """Markup in a row."""
    return Markup("".join(pieces))
