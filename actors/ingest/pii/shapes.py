"""The pre-filter: which values of a column have the shape of a kind, by RE2 over the whole array.

It lets through more than is genuine and nothing slips past it: validators look at what it lets
through. `GATE` is one look that spares most columns of words and decimals the others.
"""

import pyarrow as pa
import pyarrow.compute as pc

from schemas.events.dataset import PiiKind

GATE = r"[0-9@:]"
"""What all kinds but names have in them."""

SHAPES: dict[PiiKind, str] = {
    "email": r"^[^\s@,;<>()]{1,64}@[^\s@,;<>()]{1,190}\.[^\s@.,;<>()]{2,63}$",
    "credit_card": r"^[2-6]\d{3}(?:[ -]?\d){9,15}$",
    "iban": r"^[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]){11,30}$",
    "national_id": r"^[A-Za-z0-9](?:[ ./+-]?[A-Za-z0-9]){6,17}$",
    "ip_address": (
        r"^(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?:[.]\d{1,3}){0,3})(?:/\d{1,3})?$"
    ),
    "phone": r"^(?:\+|00)?[(]?\d(?:[ ()./-]{0,2}\d){5,16}(?: ?(?:x|ext\.?) ?\d{1,5})?$",
    "street_address": r"^[0-9][^@]*[ ,][A-Za-zÀ-ſ]|^[^0-9@][^@]*[ .][0-9]",
    "date_of_birth": (
        r"^(?:(?:19|20)\d{2}[-./](?:0?[1-9]|1[0-2])[-./](?:0?[1-9]|[12]\d|3[01])(?:[T ][\d:.]+(?:Z|[+-]\d\d:?\d\d)?)?"
        r"|(?:0?[1-9]|[12]\d|3[01])[-./ ](?:0?[1-9]|[12]\d|3[01]|[A-Za-z]{3,9})[-./ ](?:(?:19|20)\d{2}|\d{2})"
        r"|(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])|(?:19|20)\d{2})$"
    ),
}
ADDRESS = (
    # number first: English, French
    r"(?i)^\d{1,6}[a-z]?(?: ?[-/] ?\d{1,5})?,? (?:(?:bis|ter),? )?(?:"
    r"(?:[\pL\d.'’-]+ ){1,5}(?:street|st|avenue|ave|av|road|rd|lane|ln|drive|dr|boulevard|blvd|way|court|ct|place|"
    r"pl|square|sq|terrace|close|crescent|cres|parkway|pkwy|highway|hwy|circle|cir|trail|grove|gardens|mews|row)\b"
    r"|(?:rue|avenue|boulevard|bd|place|chemin|allée|impasse|quai|cours|route|passage|square|ruelle|faubourg)\b"
    r"[ \pL'’.-]+)"
    # name and kind, then number: Germanic, Nordic
    r"|^[\pL.'’ -]{1,40}(?:straße|strasse|str\.|str|weg|platz|allee|gasse|ring|ufer|damm|straat|laan|plein|gracht|"
    r"kade|dijk|singel|gatan|vägen|väg|gade|vej|vejen|gata|veien|vei|katu|tie|utca|út|ulice|třída|náměstí),? "
    r"\d{1,5} ?[a-z]?(?:[ /-]?\d{1,4})?\b"
    # kind, name, number: Romance, Slavic
    r"|^(?:calle|c/|avenida|avda\.?|av\.|plaza|paseo|camino|carrer|carretera|rua|travessa|largo|praça|estrada|via|"
    r"viale|piazza|corso|vicolo|strada|bulevardul|ul\.|ulica|al\.|aleja|pl\.|plac|os\.|osiedle)"
    r" ?[\pL.'’ºª -]{1,50},? (?:n\.?[ºo°]? ?)?\d{1,5}\b"
    r"|^(?:p\.? ?o\.? box|postfach|apartado(?: de correos)?|casella postale|boîte postale|skrytka pocztowa) \d{1,7}"
)
"""A number and a word for "street", as a dozen countries write them. Slower than the others by
twenty times, so that only what has the shape is asked."""
NAME = r"^\pL[\pL'’.-]*(?:,? \pL[\pL'’.-]*){0,4}$"
"""One to five words of letters."""


def shaped(values: pa.Array) -> dict[PiiKind, pa.Array]:
    """For each kind, which of the values (n,) text without null may be of it: booleans (n,)."""
    gate = pc.match_substring_regex(values, GATE)
    behind = values.filter(gate)
    where = pc.indices_nonzero(gate)
    found = {}
    for kind, pattern in SHAPES.items():
        found[kind] = where.filter(pc.match_substring_regex(behind, pattern)) if len(behind) else where
    found["person_name"] = pc.indices_nonzero(pc.and_(pc.invert(gate), pc.match_substring_regex(values, NAME)))
    return found
