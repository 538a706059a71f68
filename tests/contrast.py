"""How well a text can be read on a ground: WCAG 2.2, contrast ratio and relative luminance."""

Color = tuple[int, int, int]


def contrast(first: Color, second: Color) -> float:
    """From 1 to 21; at least 4.5 is asked of text."""
    dark, light = sorted((_luminance(first), _luminance(second)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(color: Color) -> float:
    linear = [
        part / 255 / 12.92 if part / 255 <= 0.04045 else ((part / 255 + 0.055) / 1.055) ** 2.4
        for part in color
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
