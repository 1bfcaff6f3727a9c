"""RE2 regular expressions, which Envoy's configuration uses, as Python patterns.

Called by the decoders. What RE2 does not know (look-around, back-references, possessive and atomic groups)
is refused, so that a file which passes here passes in Envoy; what Python does not know is translated
(`\\z`, `\\Q...\\E`, `[[:alpha:]]`) or refused. Python backtracks where RE2 does not: a pattern such as
`(a+)+b` takes exponential time on the wrong subject, here and not in Envoy.
"""

from __future__ import annotations

import re

_CLASSES = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "blank": "\\t ",
    "cntrl": "\\x00-\\x1f\\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": "!-/:-@\\[-`{-~",
    "space": "\\t\\n\\v\\f\\r ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}
_POSIX = re.compile(r"\[:(\^?)([a-z]+):\]")
_GROUP = re.compile(r"\(\?(?:P?<([A-Za-z_]\w*)>|([ims]*(?:-[ims]+)?)(:|\)))")
_QUANTIFIER = re.compile(r"(?:[*+?]|\{[0-9]+(?:,[0-9]*)?\})")
_ESCAPES = frozenset("dDwWsSbBAabfnrtvxz") | frozenset("\\.+*?()[]{}|^$/-_\"'!#%&,:;<=>@`~ ")


def translate(pattern: str) -> str:
    """The Python pattern of the same meaning. Raises ValueError with what is wrong, in words."""
    out: list[str] = []
    position = 0
    while position < len(pattern):
        char = pattern[position]
        if char == "\\":
            text, position = _escape(pattern, position, False)
        elif char == "[":
            text, position = _char_class(pattern, position)
        elif char == "(":
            text, position = _group(pattern, position)
        elif (quantifier := _QUANTIFIER.match(pattern, position)) is not None:
            text, position = _quantifier(pattern, quantifier)
        else:
            text, position = char, position + 1
        out.append(text)
    python = "".join(out)
    try:
        re.compile(python.encode())
    except re.error as error:
        raise ValueError(f"no valid regular expression: {error}") from None
    except OverflowError:
        raise ValueError("no valid regular expression: repetition count too large") from None
    return python


def translate_substitution(template: str, pattern: str) -> str:
    """An RE2 rewrite (`\\1`, `\\\\`) as a template for `re.sub` with the translated `pattern`."""
    groups = re.compile(pattern.encode()).groups
    out: list[str] = []
    position = 0
    while position < len(template):
        char = template[position]
        if char != "\\":
            out.append(char)
            position += 1
            continue
        following = template[position + 1 : position + 2]
        if following.isdigit() and following.isascii():
            if int(following) > groups:
                raise ValueError(f"\\{following} is used, but the pattern has {groups} groups")
            out.append(f"\\g<{following}>")
        elif following == "\\":
            out.append("\\\\")
        else:
            raise ValueError("after a backslash there must be a digit or a backslash")
        position += 2
    return "".join(out)


def _quantifier(pattern: str, match: re.Match[str]) -> tuple[str, int]:
    end = match.end()
    text = match.group()
    if pattern[end : end + 1] == "?":
        text, end = text + "?", end + 1
    if _QUANTIFIER.match(pattern, end) is not None:
        raise ValueError(f"two repetitions in a row at {pattern[match.start() : end + 1]!r}")
    counts = [int(count) for count in re.findall("[0-9]+", text)]
    if counts and max(counts) > 1000:
        raise ValueError("a repetition count may be at most 1000")
    return text, end


def _group(pattern: str, position: int) -> tuple[str, int]:
    if pattern[position + 1 : position + 2] != "?":
        return "(", position + 1
    match = _GROUP.match(pattern, position)
    if match is None:
        raise ValueError(f"{pattern[position : position + 4]!r} is not part of RE2's syntax")
    name, flags, end = match.groups()
    if name is not None:
        return f"(?P<{name}>", match.end()
    if end == ")":
        if position != 0:
            raise ValueError("flags are only supported at the start or for a group, as (?i:...)")
        return match.group(), match.end()
    return f"(?{flags}:", match.end()


def _escape(pattern: str, position: int, in_class: bool) -> tuple[str, int]:
    char = pattern[position + 1 : position + 2]
    if not char:
        raise ValueError("a backslash at the end")
    if char == "Q" and not in_class:
        literal, _, rest = pattern[position + 2 :].partition("\\E")
        return re.escape(literal), len(pattern) - len(rest)
    if char == "x":
        digits = re.compile(r"(?:\{([0-9A-Fa-f]+)\}|([0-9A-Fa-f]{2}))").match(pattern, position + 2)
        if digits is None or int(digits[1] or digits[2], 16) > 0x7F:
            raise ValueError("\\x is supported for ASCII only, with two digits or braces")
        return f"\\x{int(digits[1] or digits[2], 16):02x}", digits.end()
    if char not in _ESCAPES or (in_class and char in "AbBz"):
        raise ValueError(f"\\{char} is not supported")
    if char == "z":
        return "\\Z", position + 2
    return f"\\{char}" if char.isalnum() else re.escape(char), position + 2


def _char_class(pattern: str, position: int) -> tuple[str, int]:
    out = ["["]
    position += 1
    if pattern[position : position + 1] == "^":
        out.append("^")
        position += 1
    first = True
    while True:
        char = pattern[position : position + 1]
        if not char:
            raise ValueError("a character class without its closing bracket")
        if char == "]" and not first:
            return "".join([*out, "]"]), position + 1
        posix = _POSIX.match(pattern, position)
        if posix is not None:
            if posix[1] or posix[2] not in _CLASSES:
                raise ValueError(f"{posix.group()} is not supported")
            out.append(_CLASSES[posix[2]])
            position = posix.end()
        elif char == "\\":
            text, position = _escape(pattern, position, True)
            out.append(text)
        elif not char.isascii():
            raise ValueError("character classes are supported for ASCII only")
        else:
            # Python warns of these as possible set operations of a future syntax.
            out.append(f"\\{char}" if char in "[]&~|" else char)
            position += 1
        first = False
