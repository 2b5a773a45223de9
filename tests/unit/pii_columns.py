# ruff: noqa: E501 (one column a line)
"""Labelled columns for the tests of PII: what a table of customers, orders or logs has in it, made
from a seed. Genuine columns of twenty kinds and more from many countries, some under names that
tell nothing; hard negatives beside them.
"""

import random
import string
import uuid
from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal
from hashlib import sha256
from ipaddress import IPv6Address
from typing import Any

import msgspec
import phonenumbers
import pyarrow as pa
from stdnum import iban, luhn

from actors.ingest.pii.national import is_valid
from schemas.events.dataset import PiiKind

Make = Callable[[random.Random], Any]


class Labelled(msgspec.Struct, frozen=True):
    """A column, and the kind that is in it; None in a hard negative."""

    what: str
    name: str
    kind: PiiKind | None
    values: Any  # pyarrow.Array


GIVEN = [
    "Anna",
    "Peter",
    "Lukas",
    "Marie",
    "Giulia",
    "Marco",
    "José",
    "María",
    "Lucía",
    "Pierre",
    "Chloé",
    "Jean-Luc",
    "Katarzyna",
    "Piotr",
    "Ingrid",
    "Lars",
    "Søren",
    "Ahmed",
    "Fatima",
    "Yuki",
    "Hiroshi",
    "Priya",
    "Rahul",
    "Olga",
    "Dmitri",
    "John",
    "Emily",
    "Michael",
    "Sarah",
    "David",
    "Laura",
    "Tomáš",
    "Ágnes",
    "Nikos",
    "Zeynep",
]
UNCOMMON = ["Xiomara", "Thandeka", "Ulfberht", "Isolde", "Zebulon"]
SURNAMES = [
    "Schmidt",
    "Müller",
    "Rossi",
    "García",
    "Fernández",
    "Dupont",
    "Lefèvre",
    "Kowalski",
    "Nowak",
    "Jansen",
    "de-Vries",
    "Johansson",
    "Nielsen",
    "Korhonen",
    "O'Brien",
    "Smith",
    "Taylor",
    "Papadopoulos",
    "Yılmaz",
    "Tanaka",
    "Patel",
    "Ivanova",
    "Horvat",
    "Novák",
    "Nagy",
    "Silva",
    "Oliveira",
    "Meyer",
    "Weber",
]
STREETS: dict[str, list[str]] = {
    "US": ["Main Street", "Oak Avenue", "Elm St", "2nd Ave", "Sunset Blvd", "Mill Road", "Park Drive", "Hill Ct"],
    "DE": [
        "Hauptstraße",
        "Goethestr.",
        "Bahnhofstrasse",
        "Lindenweg",
        "Marktplatz",
        "Schillerallee",
        "Unter den Linden",
    ],
    "FR": ["rue de la Paix", "avenue Victor Hugo", "boulevard Voltaire", "place d'Italie", "chemin des Vignes"],
    "ES": ["Calle Mayor", "Avenida de América", "Plaza Nueva", "Paseo del Prado", "Calle San José"],
    "IT": ["Via Roma", "Via Giuseppe Garibaldi", "Piazza Dante", "Corso Italia", "Viale Europa"],
    "NL": ["Kerkstraat", "Prinsengracht", "Dorpsweg", "Stationsplein", "Beethovenlaan"],
    "PL": ["ul. Marszałkowska", "ul. Polna", "al. Jerozolimskie", "os. Słoneczne", "ul. Długa"],
    "SE": ["Kungsgatan", "Storgatan", "Skolvägen", "Drottninggatan", "Björkvägen"],
}
WORDS = [
    "order",
    "shipped",
    "late",
    "customer",
    "asked",
    "for",
    "refund",
    "blue",
    "medium",
    "cotton",
    "shirt",
    "returned",
    "because",
    "of",
    "size",
    "please",
    "check",
]


def _digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choice(string.digits) for _ in range(count))


def _email(rng: random.Random) -> str:
    name = rng.choice(["j.smith", "anna", "info", "m-rossi", "user+tag", "kowalski_p", "x9"]) + _digits(
        rng, rng.randint(0, 4)
    )
    return f"{name}@{rng.choice(['example.com', 'gmail.com', 'firma.de', 'mail.co.uk', 'bücher.de', 'sub.uni.edu'])}"


def _phone(region: str, style: int) -> Make:
    def make(rng: random.Random) -> str:
        example = phonenumbers.example_number_for_type(region, phonenumbers.PhoneNumberType.MOBILE)
        base = str(example.national_number)
        while True:
            number = phonenumbers.PhoneNumber(example.country_code, int(base[:-6] + _digits(rng, 6)))
            if phonenumbers.is_valid_number(number):
                return str(phonenumbers.format_number(number, style))

    return make


def _card(rng: random.Random) -> str:
    prefix, length = rng.choice([("4", 16), ("51", 16), ("37", 15), ("6011", 16), ("2221", 16), ("36", 14)])
    body = prefix + _digits(rng, length - len(prefix) - 1)
    return body + str(luhn.calc_check_digit(body))


def _grouped(number: str) -> str:
    return " ".join(number[i : i + 4] for i in range(0, len(number), 4))


def _iban(rng: random.Random) -> str:
    country = rng.choice(["DE", "AT", "LT", "DK", "PL"])
    length = {"DE": 18, "AT": 16, "LT": 16, "DK": 14, "PL": 24}[country]
    while True:
        body = _digits(rng, length)
        number = f"{country}{iban.calc_check_digits(f'{country}00{body}')}{body}"
        if iban.is_valid(number):
            return number


def national(scheme: str, shape: str) -> Make:
    """Random numbers of the shape (d: a digit, L: a letter) until one is valid."""

    def make(rng: random.Random) -> str:
        draw = {"d": string.digits, "L": string.ascii_uppercase}
        while True:
            number = "".join(rng.choice(draw[c]) if c in draw else c for c in shape)
            if is_valid(scheme, number):
                return number

    return make


NATIONAL = {
    "us.ssn": "ddd-dd-dddd",
    "gb.nhs": "dddddddddd",
    "de.idnr": "ddddddddddd",
    "fr.nir": "1dddddddddddddd",
    "es.dni": "ddddddddL",
    "es.nie": "XdddddddL",
    "it.codicefiscale": "LLLLLLddLddLdddL",
    "nl.bsn": "ddddddddd",
    "be.nn": "ddddddddddd",
    "pt.nif": "ddddddddd",
    "pl.pesel": "ddddddddddd",
    "se.personnummer": "dddddd-dddd",
    "no.fodselsnummer": "ddddddddddd",
    "dk.cpr": "dddddd-dddd",
    "fi.hetu": "dddddd-dddL",
    "ro.cnp": "ddddddddddddd",
    "ch.ssn": "756dddddddddd",
    "at.vnr": "dddddddddd",
    "br.cpf": "ddd.ddd.ddd-dd",
    "cl.rut": "ddddddddd",
    "in_.aadhaar": "dddddddddddd",
    "kr.rrn": "dddddd-ddddddd",
    "za.idnr": "ddddddddddddd",
    "tr.tckimlik": "ddddddddddd",
    "il.idnr": "ddddddddd",
    "ca.sin": "ddd-ddd-ddd",
}


def _address(country: str) -> Make:
    def make(rng: random.Random) -> str:
        street, number = rng.choice(STREETS[country]), rng.randint(1, 250)
        first = country in ("US", "FR")
        return (
            f"{number} {street}"
            if first
            else f"{street} {number}{rng.choice(['', '', 'a'] if country == 'DE' else [''])}"
        )

    return make


def _name(rng: random.Random) -> str:
    given = rng.choice(UNCOMMON) if rng.random() < 0.1 else rng.choice(GIVEN)
    return f"{given} {rng.choice(SURNAMES)}"


def _born(rng: random.Random) -> date:
    return date(1940, 1, 1) + timedelta(days=rng.randrange(25_000))


def _moment(rng: random.Random) -> datetime:
    return datetime(2023, 1, 1) + timedelta(seconds=rng.randrange(60_000_000))


GENUINE: list[tuple[str, tuple[str, ...], PiiKind, Make]] = [
    ("e-mail", ("email", "kontakt", "c3", "order_email"), "email", _email),
    ("e-mail in capitals", ("Mail-Adresse", "v"), "email", lambda r: _email(r).upper()),
    ("card", ("card_number", "f7"), "credit_card", _card),
    ("card in groups", ("cc", "payment"), "credit_card", lambda r: _grouped(_card(r))),
    ("IBAN", ("iban", "f1"), "iban", _iban),
    ("IBAN in groups", ("Kontonummer", "x"), "iban", lambda r: _grouped(_iban(r))),
    ("IPv4", ("ip", "client", "source_ip"), "ip_address", lambda r: f"{r.randint(20, 223)}.{r.randint(0, 255)}.{r.randint(0, 255)}.{r.randint(1, 254)}"),
    ("IPv6", ("remote_addr", "c8"), "ip_address", lambda r: str(IPv6Address(0x20010DB8 << 96 | r.getrandbits(64)))),
    ("private IPv4", ("ip_address",), "ip_address", lambda r: f"10.0.{r.randint(0, 3)}.{r.randint(1, 254)}"),
    ("full name", ("name", "customer_name", "Kunde", "c2"), "person_name", _name),
    ("surname first", ("author", "patient"), "person_name", lambda r: ", ".join(reversed(_name(r).split(" ", 1)))),
    ("given name", ("first_name", "vorname", "prénom"), "person_name", lambda r: r.choice(GIVEN)),
    ("surname", ("last_name", "Nachname", "apellidos"), "person_name", lambda r: r.choice(SURNAMES)),
    *[(f"address {c}", ("address", "c5"), "street_address", _address(c)) for c in STREETS],
    ("date of birth", ("dob", "birthDate", "Geburtsdatum"), "date_of_birth", _born),
    ("date of birth, text", ("date_of_birth", "fecha_nacimiento"), "date_of_birth", lambda r: _born(r).strftime("%d.%m.%Y")),
    ("date of birth, number", ("birthday",), "date_of_birth", lambda r: int(_born(r).strftime("%Y%m%d"))),
    *[(f"phone {c} international", ("phone", "c4"), "phone", _phone(c, phonenumbers.PhoneNumberFormat.INTERNATIONAL)) for c in ("DE", "FR", "US", "BR", "IN", "PL")],
    *[(f"phone {c} E.164", ("mobile", "kanal"), "phone", _phone(c, phonenumbers.PhoneNumberFormat.E164)) for c in ("GB", "ES", "JP")],
    *[(f"phone {c} national", ("telefon", "c6"), "phone", _phone(c, phonenumbers.PhoneNumberFormat.NATIONAL)) for c in ("DE", "FR", "US", "IT")],
    ("phone as integer", ("phone_number", "Handy"), "phone", lambda r: int(_phone("DE", phonenumbers.PhoneNumberFormat.E164)(r)[1:])),
    ("card as integer", ("pan", "n1"), "credit_card", lambda r: int(_card(r))),
    ("CPR as integer", ("cpr", "n2"), "national_id", lambda r: int(national("dk.cpr", "dddddddddd")(r))),
    ("PESEL as integer", ("pesel", "n3"), "national_id", lambda r: int(national("pl.pesel", "ddddddddddd")(r))),
    *[(f"national id {scheme}", ("national_id", "c9"), "national_id", national(scheme, shape)) for scheme, shape in NATIONAL.items()],
]  # fmt: skip

NEGATIVE: list[tuple[str, tuple[str, ...], Make]] = [
    ("order number", ("order_no", "c1", "reference"), lambda r: f"{r.randint(10**9, 10**10 - 1)}"),
    ("order number, integer", ("order_id", "n7"), lambda r: r.randint(10**8, 10**9)),
    ("order number with letters", ("order", "k"), lambda r: f"ORD-2024-{_digits(r, 6)}"),
    ("sixteen digits", ("transaction", "t"), lambda r: _digits(r, 16)),
    ("eleven digits", ("tracking_number", "z"), lambda r: _digits(r, 11)),
    ("nine digits", ("ref", "account_ref"), lambda r: _digits(r, 9)),
    ("UUID", ("uuid", "id", "session"), lambda r: str(uuid.UUID(int=r.getrandbits(128), version=4))),
    ("hash", ("sha256", "etag"), lambda r: sha256(_digits(r, 9).encode()).hexdigest()),
    ("short hash", ("commit", "h"), lambda r: f"{r.getrandbits(28):07x}"),
    ("price", ("price", "p"), lambda r: f"{r.randint(1, 9999)}.{_digits(r, 2)}"),
    ("price, decimal", ("amount",), lambda r: Decimal(r.randint(100, 10**7)) / 100),
    ("price with a sign", ("total", "q"), lambda r: f"€ {r.randint(1, 9)},{_digits(r, 3)}.{_digits(r, 2)}"),
    ("latitude", ("lat", "a"), lambda r: r.uniform(-90, 90)),
    ("coordinates", ("position", "geo"), lambda r: f"{r.uniform(-90, 90):.6f}, {r.uniform(-180, 180):.6f}"),
    ("coordinate, text", ("lon", "b"), lambda r: f"{r.uniform(-180, 180):.6f}"),
    ("version", ("version", "release"), lambda r: f"{r.randint(0, 9)}.{r.randint(0, 30)}.{r.randint(0, 99)}"),
    ("version of four", ("firmware", "w"), lambda r: f"{r.randint(1, 9)}.{r.randint(0, 30)}.{r.randint(0, 9)}.{r.randint(0, 99)}"),
    ("SKU", ("sku", "s"), lambda r: f"{r.choice(['AB', 'XK', 'TT'])}-{_digits(r, 4)}-{r.choice('SML')}"),
    ("EAN-13", ("ean", "code"), lambda r: _ean(r)),
    ("ISBN-10", ("isbn", "book"), lambda r: _isbn10(r)),
    ("timestamp", ("created_at", "ts"), _moment),
    ("timestamp, text", ("updated", "u"), lambda r: _moment(r).isoformat()),
    ("epoch seconds", ("epoch", "when"), lambda r: int(_moment(r).timestamp())),
    ("epoch milliseconds", ("time_ms", "e"), lambda r: int(_moment(r).timestamp() * 1000)),
    ("date", ("order_date", "d"), lambda r: _moment(r).date()),
    ("date, German", ("valid_from", "g"), lambda r: _moment(r).strftime("%d.%m.%Y")),
    ("date, American", ("shipped", "m"), lambda r: _moment(r).strftime("%m/%d/%Y")),
    ("free text", ("comment", "c7"), lambda r: " ".join(r.choices(WORDS, k=12))),
    ("free text with numbers", ("notes", "l"), lambda r: f"{' '.join(r.choices(WORDS, k=6))} {r.randint(2, 99)} pieces"),
    ("product name", ("product_name", "item", "o"), lambda r: f"{r.choice(['Classic', 'Pro', 'Ultra', 'Mini'])} {r.choice(['Chair', 'Lamp', 'Kettle', 'Desk'])}"),
    ("product line with people's names", ("product", "model"), lambda r: f"{r.choice(GIVEN)} {r.choice(['Chair', 'Lamp'])}"),
    ("town", ("city", "y"), lambda r: r.choice(["Paris", "London", "Berlin", "Madrid", "Charlotte", "Oslo", "Rome", "Lyon"])),
    ("country", ("country", "j"), lambda r: r.choice(["Germany", "France", "Spain", "Georgia", "Jordan", "Chad"])),
    ("company", ("company", "company_name"), lambda r: f"{r.choice(SURNAMES)} {r.choice(['GmbH', 'Ltd', 'Inc', 'SA'])}"),
    ("status", ("status", "st"), lambda r: r.choice(["open", "paid", "shipped", "returned"])),
    ("URL", ("url", "link"), lambda r: f"https://example.com/{_digits(r, 6)}"),
    ("handle", ("twitter", "handle"), lambda r: f"@user{_digits(r, 4)}"),
    ("time of day", ("at", "start_time"), lambda r: f"{r.randint(0, 23):02}:{r.randint(0, 59):02}:{r.randint(0, 59):02}"),
    ("MAC address", ("mac", "device"), lambda r: ":".join(f"{r.getrandbits(8):02x}" for _ in range(6))),
    ("post code", ("zip", "plz"), lambda r: _digits(r, 5)),
    ("IMEI-like serial", ("serial", "unit"), lambda r: "86" + _digits(r, 13)),
    ("size", ("size", "dimensions"), lambda r: f"{r.randint(1, 99)}x{r.randint(1, 99)}"),
    ("quantity", ("quantity", "qty"), lambda r: r.randint(1, 500)),
    ("file name", ("filename", "path"), lambda r: f"scan_{_digits(r, 5)}.pdf"),
]  # fmt: skip


def _ean(rng: random.Random) -> str:
    while True:
        number = rng.choice(["400", "501", "590"]) + _digits(rng, 10)
        if is_valid("ean", number):
            return number


def _isbn10(rng: random.Random) -> str:
    while True:
        number = _digits(rng, 9) + rng.choice(string.digits + "X")
        if is_valid("isbn", number):
            return number


def labelled(seed: int, rows: int) -> list[Labelled]:
    """Every column of the set, with a tenth of nulls; one text in fifty of a genuine column is
    damaged."""
    rng = random.Random(seed)
    columns = []
    for what, names, kind, make in GENUINE:
        values = [None if rng.random() < 0.1 else _worn(make(rng), rng) for _ in range(rows)]
        columns += [Labelled(what, name, kind, pa.array(values)) for name in names]
    for what, names, make in NEGATIVE:
        values = [None if rng.random() < 0.1 else make(rng) for _ in range(rows)]
        columns += [Labelled(what, name, None, pa.array(values)) for name in names]
    return columns


def _worn(value: Any, rng: random.Random) -> Any:
    if not isinstance(value, str) or rng.random() > 0.02:
        return value
    at = rng.randrange(len(value))
    return value[:at] + value[at + 1 :]
