"""Phone numbers, by phonenumbers: international ones as they are, national ones of the one country
that most values of the column fit.

Ten digits are a valid phone number somewhere almost always, so that bare digits count only where
the column's name says what they are; signs that people write phone numbers with (a plus, brackets,
groups) count for more.
"""

import re
from collections import Counter
from collections.abc import Sequence

import phonenumbers

from actors.ingest.pii.evidence import Asked, Evidence, posterior
from actors.ingest.pii.hints import hint

_FIRST = 16
"""Values that decide on the country."""
_COUNTRIES = (
    "US GB DE FR IT ES NL BE AT CH PL SE NO DK FI PT IE CZ SK HU RO BG GR HR SI LT LV EE "
    "BR MX AR CL CO PE CA AU NZ IN CN JP KR SG MY TH ID PH VN TR IL ZA EG NG KE UA RU SA AE"
)
"""Whose national numbers are looked for; of equals the first."""
_REGIONS = _COUNTRIES.split()
_PLUS = re.compile(r"(?:\+|00)[1-9]")
_WRITTEN = re.compile(
    r"\(\d{2,5}\) ?[\d -]{5,}"  # (415) 555-2671
    r"|(?:1[-. ])?\d{3}[-. ]\d{3}[-. ]\d{4}"  # 415-555-2671
    r"|0\d{1,4}[ /-]\d[\d /-]{4,}"  # 030 1234567, 06 12 34 56 78
    r"|\d{2,3}(?: \d{2,3}){3,4}"  # 612 34 56 78
)
_NO_PHONE = re.compile(
    r"\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}[-./]\d{1,2}[-./]\d{2,4}"  # dates
    r"|\d+\.\d+|(?:\d{1,3}\.){3}\d{1,3}"  # decimals, IPv4 addresses
    r"|\d{3}-\d{2}-\d{4}"  # a US social security number
)
_CHANCE_PLUS, _CHANCE_WRITTEN, _CHANCE_BARE = 0.15, 0.15, 0.8


def phone(asked: Asked, candidates: Sequence[int]) -> Evidence | None:
    """What the candidates (indices of the column's values) say."""
    values, integers = asked.values, asked.integers
    said = hint(asked.column, "phone")
    looked_at = [i for i in candidates if not _NO_PHONE.fullmatch(values[i])]
    if integers and said != "for":
        return None
    plus = [i for i in looked_at if _PLUS.match(values[i])]
    rest = [i for i in looked_at if not _PLUS.match(values[i])]
    countries: Counter[str] = Counter()
    passed = []
    for i in plus:
        text = values[i] if values[i].startswith("+") else "+" + values[i][2:]
        if found := _region_of(text, None):
            countries[found] += 1
            passed.append(i)
    evidence = posterior(said, len(passed), len(plus), _CHANCE_PLUS)
    region = _best_region([values[i] for i in rest[:_FIRST]], integers)
    national = {i: of for i in rest if (of := _country(values[i], region, integers))} if region else {}
    written = sum(bool(_WRITTEN.fullmatch(values[i])) for i in rest)
    groups = 2 * written > len(rest)
    chance = _CHANCE_WRITTEN if groups else _CHANCE_BARE
    # Without a plus and without a word in the name, the groups are needed.
    if region and (groups or said == "for"):
        found_national = posterior(said, len(national), len(rest), chance)
        if found_national >= 0.5:
            evidence = max(evidence, found_national)
            passed += national
            countries.update(national.values())
    if not passed:
        return None
    return Evidence("phone", evidence, asked.mask(passed), " ".join(country for country, _ in countries.most_common(3)))


def _best_region(values: Sequence[str], integers: bool) -> str | None:
    """The country whose numbers most of the values are; None when not even half are."""
    counts = {region: sum(_country(value, region, integers) is not None for value in values) for region in _REGIONS}
    best = max(_REGIONS, key=lambda region: counts[region])
    return best if 2 * counts[best] >= len(values) > 0 else None


def _country(value: str, region: str, integers: bool) -> str | None:
    """The country of a number of the region; of an integer, with its country code in front too."""
    return (integers and _region_of("+" + value, None)) or _region_of(value, region)


def _region_of(value: str, region: str | None) -> str | None:
    """The country of a valid number, None of another."""
    try:
        number = phonenumbers.parse(value, region)
    except phonenumbers.NumberParseException:
        return None
    if not phonenumbers.is_valid_number(number):
        return None
    return phonenumbers.region_code_for_number(number) or "international"
