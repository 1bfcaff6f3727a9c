"""RE2's syntax in Python: translated, or refused with a reason."""

from __future__ import annotations

import re

import pytest

from sidecar.config.decode.regex import translate, translate_substitution


@pytest.mark.parametrize(
    ("pattern", "value", "expected"),
    [
        ("/v[0-9]+/.*", "/v12/x", True),
        ("(/a|/b)?/c", "/b/c", True),
        ("(?i)/ab", "/AB", True),
        ("(?i:/A)b", "/ab", True),
        (r"\Q/a.b\E.*", "/a.bcd", True),
        (r"\Q/a.b\E", "/axb", False),
        (r"a\z", "a", True),
        ("[[:alpha:]_]+", "aZ_", True),
        ("[[:digit:]]+", "1a", False),
        ("[]a]+", "]a", True),
        ("[^]a]+", "b", True),
        (r"[\d\-/]+", "1-/", True),
        (r"\x41\x{42}", "AB", True),
        ("(?P<n>a)(?<m>b)", "ab", True),
        ("a{2,3}", "aaaa", False),
        ("a.*?b", "axb", True),
        (r"\/a", "/a", True),
        ("[a&&b]+", "&b", True),
        (r"\d", "\N{ARABIC-INDIC DIGIT ONE}", False),
    ],
)
def test_patterns_mean_what_they_mean_in_re2(pattern: str, value: str, expected: bool) -> None:
    assert bool(re.fullmatch(translate(pattern).encode(), value.encode())) is expected


@pytest.mark.parametrize(
    "pattern",
    [
        "(?=a)",
        "(?!a)",
        "(?<=a)b",
        "(?<!a)b",
        "(?>a)",
        "(?#comment)",
        "(?P=n)",
        r"(a)\1",
        "a++",
        "a**",
        "a(?i)b",
        r"\Z",
        r"\pL",
        r"\C",
        "a\\",
        "[a",
        "(a",
        "a)",
        "[z-a]",
        "[[:unknown:]]",
        "*a",
        "a{1001}",
        r"\x{1F600}",
        "(?(1)a|b)",
    ],
)
def test_what_re2_or_python_does_not_know_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError):
        translate(pattern)


@pytest.mark.parametrize(
    ("template", "expected"), [(r"/\1-\0", "/b-/ab"), (r"\\", "\\"), ("/x", "/x"), ("", "")]
)
def test_substitutions_are_translated(template: str, expected: str) -> None:
    pattern = translate("/a(b)")
    assert re.sub(pattern, translate_substitution(template, pattern), "/ab") == expected


@pytest.mark.parametrize("template", [r"\2", r"\n", "\\"])
def test_bad_substitutions_are_refused(template: str) -> None:
    with pytest.raises(ValueError):
        translate_substitution(template, translate("/a(b)"))
