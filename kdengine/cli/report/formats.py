"""How the report writes numbers and names."""

from __future__ import annotations

import re

from kdengine.cli.report.values import Value

THIN = "\N{NARROW NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"
_LONG = 1e12
TIMES = "\N{MULTIPLICATION SIGN}"
_PARTS_OF_ONE = re.compile(r"top-?\d+|acc(uracy)?|agreement|calibration_error|ece|error_rate", re.IGNORECASE)
_LOWER_IS_BETTER = re.compile(
    r"(^|_|\b)(error|loss|perplexity|ppl|nll|ece|mse|mae|rmse|error_rate)(_|\b|$)", re.IGNORECASE
)


def is_share(metric: str) -> bool:
    """Whether a metric is a part of one and reads best as a percentage.

    >>> is_share("top1"), is_share("perplexity")
    (True, False)
    """
    return _PARTS_OF_ONE.fullmatch(metric) is not None


def looks_lower_better(metric: str) -> bool:
    """Guess a metric's direction from its name.

    >>> looks_lower_better("calibration_error"), looks_lower_better("top1")
    (True, False)
    """
    return _LOWER_IS_BETTER.search(metric) is not None


def metric_name(metric: str) -> str:
    """A metric's name in running text.

    >>> metric_name("top1"), metric_name("calibration_error")
    ('top-1', 'calibration error')
    """
    return re.sub(r"^top(\d+)$", r"top-\1", metric).replace("_", " ")


def measure(metric: str, number: float) -> str:
    """A metric's value: a percentage with one decimal, or four significant digits."""
    return percent(number) if is_share(metric) else plain(number)


def spread_measure(metric: str, value: Value) -> str:
    """A metric's value with its spread over seeds, where it has one."""
    if value.sd is None:
        return measure(metric, value.mean)
    if is_share(metric):
        return f"{_signed(100 * value.mean, 1)} ± {100 * value.sd:.1f}{THIN}%"
    return f"{plain(value.mean)} ± {value.sd:.2g}"


def difference(metric: str, number: float) -> str:
    """A signed difference, in points where the metric is a percentage.

    >>> difference("top1", -0.012).replace(THIN, " ").replace(MINUS, "-")
    '-1.2 points'
    """
    sign = MINUS if number < 0 else "+"
    if not is_share(metric):
        return f"{sign}{plain(abs(number))}"
    size = f"{abs(100 * number):.1f}"
    return f"{'±' if size == '0.0' else sign}{size}{THIN}point{'' if size == '1.0' else 's'}"


def size(metric: str, number: float) -> str:
    """The size of a difference without its sign."""
    return difference(metric, abs(number)).lstrip("+±")


def percent(number: float, digits: int = 1) -> str:
    """A part of one as a percentage.

    >>> percent(0.956).replace(THIN, " ")
    '95.6 %'
    """
    return f"{_signed(100 * number, digits)}{THIN}%"


def whole_percent(number: float) -> str:
    """A percentage with a decimal only where it needs one.

    >>> whole_percent(0.1).replace(THIN, " "), whole_percent(0.125).replace(THIN, " ")
    ('10 %', '12.5 %')
    """
    rounded = round(100 * number, 1)
    return percent(number, 0 if rounded == int(rounded) else 1)


def plain(number: float) -> str:
    """Four significant digits, thousands apart; what would be longer than a cell is written with its power of ten.

    >>> plain(0.51239), plain(3e-05)
    ('0.5124', '3e-05')
    """
    if number == 0:
        return "0"
    if _LONG > abs(number) >= 1000:
        return count(round(number))
    return f"{number:.4g}".replace("-", MINUS, 1) if number < 0 else f"{number:.4g}"


def count(number: int) -> str:
    """A whole number with its thousands apart.

    >>> count(1257).replace(THIN, " ")
    '1 257'
    """
    return f"{number:,}".replace(",", THIN).replace("-", MINUS)


def parameters(number: int) -> str:
    """A number of parameters, to three digits.

    >>> [parameters(n).replace(THIN, " ") for n in (850, 77_850, 25_557_032)]
    ['850', '77.8 k', '25.6 M']
    """
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * unit:
            scaled = number / unit
            return f"{scaled:.3g}{THIN}{letter}" if scaled < 999.5 else f"{scaled:.0f}{THIN}{letter}"
    return str(number)


def ratio(of: int, to: int) -> str | None:
    """How a model's size compares to its teacher's; None when they are about equal.

    >>> ratio(2410, 77850), ratio(50, 50)
    ('32× smaller', None)
    """
    if of <= 0 or to <= 0:
        return None
    factor, word = (to / of, "smaller") if to >= of else (of / to, "larger")
    if factor < 1.05:
        return None
    return f"{factor:.1f}{TIMES} {word}" if factor < 9.95 else f"{factor:.0f}{TIMES} {word}"


def duration(seconds: float) -> str:
    """A time span.

    >>> [duration(s).replace(THIN, " ") for s in (0.42, 31.2, 75, 7265)]
    ['0.42 s', '31.2 s', '1 min 15 s', '2 h 1 min']
    """
    if seconds < 59.95:
        return f"{seconds:.2g}{THIN}s" if seconds < 1 else f"{seconds:.1f}{THIN}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}{THIN}min {whole % 60}{THIN}s"
    return f"{whole // 3600}{THIN}h {whole % 3600 // 60}{THIN}min"


def _signed(number: float, digits: int) -> str:
    text = f"{number:.{digits}f}" if abs(number) < _LONG else f"{number:.3g}"
    if not text.startswith("-"):
        return text
    return text[1:] if float(text) == 0 else MINUS + text[1:]
