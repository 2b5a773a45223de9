"""What a column's name says about what is in it: a word for a kind, a word against it, or nothing.

Words of a dozen languages, without accents; `customerEMail_2` is split into customer, e, mail.
"""

import re
import unicodedata
from typing import Literal

from schemas.events.dataset import PiiKind

Hint = Literal["for", "none", "against"]


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


WORDS: dict[PiiKind, frozenset[str]] = {
    "email": _set("email emails mail mails correo courriel epost eposta sahkoposti"),
    "phone": _set(
        "phone phones phonenumber telephone tel telnr telefon telefonnummer telefono telefone telefoon mobile mobil "
        "mobiltelefon movil celular cell cellphone handy handynummer fax gsm msisdn portable whatsapp landline "
        "puhelin telefonszam rufnummer"
    ),
    "credit_card": _set(
        "card cards cardnumber cardno cc ccnum ccnumber creditcard debitcard kreditkarte karte carte tarjeta carta "
        "cartao visa mastercard amex karta"
    ),
    "iban": _set("iban ibans bankaccount account accountnumber konto kontonummer bank rekening rib cuenta"),
    "national_id": _set(
        "ssn socialsecurity social nationalid national nin nino taxid tin itin steuerid steuernummer idnr bsn "
        "rijksregister niss nrn pesel dni nie nif nir insee secu cpf cnp cpr cprnr personnummer personnr "
        "fodselsnummer hetu henkilotunnus codicefiscale fiscale aadhaar pan curp rrn nric mykad tckn tckimlik sin "
        "tfn nhs amka egn oib emso isikukood asmenskodas kennitala rodnecislo rut cedula ahv avs ppsn pps svnr "
        "sozialversicherungsnummer nik teudatzehut"
    ),
    "ip_address": _set("ip ips ipaddress ipaddr ipv4 ipv6 remoteaddr clientip sourceip"),
    "person_name": _set(
        "firstname givenname forename lastname surname familyname fullname middlename maidenname fname lname vorname "
        "nachname familienname zuname prenom nom nombre nombres apellido apellidos nome cognome sobrenome voornaam "
        "achternaam fornamn efternamn fornavn etternavn efternavn etunimi sukunimi imie nazwisko jmeno prijmeni "
        "keresztnev vezeteknev cardholder kontoinhaber"
    ),
    "street_address": _set(
        "address addresses addressline street streetaddress addr strasse anschrift adresse direccion domicilio calle "
        "rue indirizzo via endereco rua adres straat adress gatuadress gade osoite adresa ulica residence"
    ),
    "date_of_birth": _set(
        "dob birth birthday birthdate bday dateofbirth born geburtsdatum geburtstag geburt geboren naissance "
        "datenaissance nacimiento nascimento nascita geboortedatum geboorte fodelsedatum fodselsdato fodselsdag "
        "syntymaaika urodzenia narozeni szuletes birthyear geburtsjahr"
    ),
}
"""Words that speak for a kind."""

PEOPLE = _set(
    "name names customer client contact author owner user employee person patient member passenger recipient sender "
    "holder manager assignee signatory student teacher doctor guest kunde kundin mitarbeiter cliente usuario "
    "employe nombrecompleto beneficiary tenant applicant candidate buyer seller driver"
)
"""Words that allow names of people, but don't promise them."""

OTHERS = _set(
    "isbn ean upc gtin asin sku barcode order orders invoice product item article artikel price amount cost total sum "
    "qty quantity version release build firmware uuid guid hash sha sha1 sha256 md5 checksum digest token lat lon lng "
    "latitude longitude coord coordinates timestamp created updated modified epoch city town country state region "
    "company brand vendor supplier model color colour category title description tracking serial imei size weight "
    "url host hostname file filename status code table column event metric genre language species month day stadt "
    "land firma ville pays ciudad pais produkt produit producto batch lot revision commit branch department team "
    "project"
)
"""Words for what is no person's: against every kind whose values may arise by chance."""

SURNAMES = _set(
    "lastname surname familyname lname nachname familienname zuname apellido apellidos cognome sobrenome achternaam "
    "efternamn etternavn efternavn sukunimi nazwisko prijmeni vezeteknev maidenname"
)


def words(column: str) -> list[str]:
    """The words of a column's name, in order, then each two and three neighbours as one word.
    Digits at the end of a word are left out."""
    plain = unicodedata.normalize("NFKD", column.replace("ß", "ss").replace("ø", "o").replace("ł", "l"))
    plain = "".join(char for char in plain if not unicodedata.combining(char))
    parts = [
        bare
        for part in re.findall(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|\d+", plain)
        if (bare := part.lower() if part.lower() in ("ipv4", "ipv6", "sha1", "sha256", "md5") else _bare(part))
    ]
    joined = ["".join(parts[i : i + n]) for n in (2, 3) for i in range(len(parts) - n + 1)]
    return parts + joined


def hint(column: str, kind: PiiKind) -> Hint:
    """What the name says of the kind. For a person's name a word against outweighs one for it:
    `product_name`, `city_nom`; elsewhere it is the other way round: `order_phone`. A word for
    another kind is one against this: what is called `telefon` is hardly a national id."""
    found = words(column)
    speaks = any(word in WORDS[kind] for word in found)
    against = any(word in OTHERS for word in found)
    if kind == "person_name":
        return "against" if against else "for" if speaks else "none"
    against |= any(word in of_kind for of_kind in WORDS.values() for word in found)
    return "for" if speaks else "against" if against else "none"


def allows_people(column: str) -> bool:
    return any(word in PEOPLE for word in words(column))


def means_surname(column: str) -> bool:
    return any(word in SURNAMES for word in words(column))


def _bare(part: str) -> str:
    return part.lower().rstrip("0123456789")
