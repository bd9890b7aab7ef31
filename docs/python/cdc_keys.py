"""What stands in a key for a value of a column: the text that Postgres prints for the column's
type, in the template's normal form, encoded. It is the same as in the Go library, after
docs/protocol.md, for the types that it knows; of others it takes a RowText only.
"""

from __future__ import annotations

import datetime as dt
import decimal
import ipaddress
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

import psycopg
from psycopg.rows import tuple_row

MAX_KEY_LENGTH = 16384  # bytes of a key, or of an entity's name; the daemon makes none that is longer

_RESERVED = re.compile("[\x00-\x20\x7f%:*?\\[\\]{}\\\\\udc80-\udcff]")


class RowText(str):
    """The text of the row itself: SELECT column::text, with TimeZone UTC and the default formats."""


class BadVariable(ValueError):
    """A value that is not known to be the text of a row: a key of it would never be invalidated."""


class TypesUnknown(Exception):
    """The source does not say of what type a column is."""


Value = (
    str | bytes | int | bool | uuid.UUID | decimal.Decimal | dt.date | dt.time | dt.datetime
    | ipaddress.IPv4Address | ipaddress.IPv6Address | ipaddress.IPv4Interface | ipaddress.IPv6Interface
    | ipaddress.IPv4Network | ipaddress.IPv6Network | None
)  # fmt: skip


@dataclass(frozen=True)
class Type:
    name: str  # of pg_type, without domains; "" where no mapping tells the variable
    modifier: int = -1
    domain: bool = False
    nondeterministic: bool = False
    shown: str = ""
    printed: str = ""  # what the text of a value follows from, as the daemon's stamps have it


FREE = Type("")

_TYPES = """
WITH RECURSIVE base(typ, mod, depth, coll, shown) AS (
    SELECT a.atttypid, a.atttypmod, 0, a.attcollation, format_type(a.atttypid, a.atttypmod)
    FROM pg_namespace s
    JOIN pg_class c ON c.relnamespace = s.oid
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE s.nspname = %s::text::name AND c.relname = %s::text::name AND a.attname = %s::text::name
    UNION ALL
    SELECT t.typbasetype, t.typtypmod, b.depth + 1, b.coll, b.shown
    FROM base b JOIN pg_type t ON t.oid = b.typ AND t.typtype = 'd'
)
SELECT CASE t.typtype WHEN 'e' THEN 'enum' ELSE t.typname END::text, b.mod, b.depth > 0,
       coalesce(NOT l.collisdeterministic, false), b.shown,
       concat(s.nspname, '.', t.typname,
              CASE WHEN b.mod < 0 OR t.oid = 1043 OR t.oid = 1042 AND b.depth = 0 THEN NULL
                   WHEN t.oid = 1700 THEN ' scale ' || ((b.mod - 4) & 2047)
                   ELSE ' ' || b.mod END,
              CASE WHEN t.typtype <> 'b' THEN ' ' || t.typtype::text END,
              CASE WHEN b.depth > 0 AND t.oid = 1042 THEN ' domain' END,
              CASE WHEN NOT l.collisdeterministic THEN ' nondeterministic' END)
FROM base b JOIN pg_type t ON t.oid = b.typ JOIN pg_namespace s ON s.oid = t.typnamespace LEFT JOIN pg_collation l ON l.oid = b.coll
ORDER BY b.depth DESC LIMIT 1
"""


def read_type(conn: psycopg.Connection, column: str) -> Type:
    """column is schema.table.column."""
    row = conn.cursor(row_factory=tuple_row).execute(_TYPES, column.split(".", 2)).fetchone()
    if row is None:
        raise TypesUnknown(f"there is no column {column}")
    return Type(*row)


def terms(types: Mapping[str, tuple[Type, ...]]) -> str:
    """Of what types the columns are that each variable comes from, as the daemon's stamps say it."""
    return "; ".join(f"{name}: {', '.join(sorted({t.printed for t in types[name]}, key=str.encode))}" for name in sorted(types, key=str.encode))


def encode(value: str | bytes | None) -> str:
    """A text as it stands in a key."""
    if value is None:
        return "%-"
    if isinstance(value, str):
        value = value.encode()
    # surrogateescape turns a byte that is not UTF-8 into one of U+DC80 to U+DCFF.
    return _RESERVED.sub(
        lambda m: "%%%02X" % m[0].encode("utf-8", "surrogateescape")[0], value.decode("utf-8", "surrogateescape")
    )


def _lower(c: str) -> str:
    """The simple mapping of Unicode 13.0; letters that have got a lower case since stay."""
    r = ord(c)
    if (
        r in (0x1C89, 0x2C2F, 0xA7C0) or 0xA7CB <= r <= 0xA7DF
        or 0x10570 <= r <= 0x10595 or 0x10D50 <= r <= 0x10D65 or 0x16EA0 <= r <= 0x16EB8
    ):  # fmt: skip
        return c
    return c.lower()[0]  # the one letter with a longer mapping, U+0130, begins with its simple one


def normal(form: str | None, text: str | bytes | None) -> str | bytes | None:
    """The normal form that {name|form} asks for."""
    if not form or text is None:
        return text
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    match form:
        case "lower":
            text = "".join(map(_lower, text))
        case "rtrim":
            text = text.rstrip(" ")
        case "number":
            if re.fullmatch(r"-?[0-9]+\.[0-9]+", text):
                text = text.rstrip("0").removesuffix(".")
        case _:
            raise ValueError(f"{form} is not a normal form")
    return text.encode("utf-8", "surrogateescape")


_INTEGERS = {"int2", "int4", "int8", "oid", "xid", "cid", "xid8"}
_UNSIGNED = {"oid": 2**32, "xid": 2**32, "cid": 2**32, "xid8": 2**64}  # beyond it Postgres takes another number
_TEXTS = {"text", "varchar", "bpchar", "name", "char", "citext", "enum"}
_PRINTED = {
    "bool": "[tf]",
    "uuid": "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    "bytea": r"\\x([0-9a-f]{2})*",
    "macaddr": "[0-9a-f]{2}(:[0-9a-f]{2}){5}",
    "macaddr8": "[0-9a-f]{2}(:[0-9a-f]{2}){7}",
    "varbit": "[01]*",
    "pg_lsn": "(0|[1-9A-F][0-9A-F]{0,7})/(0|[1-9A-F][0-9A-F]{0,7})",
}
_UNIT, _CLOCK = r"[+-]?[0-9]+ (year|mon|day)s?", r"[+-]?[0-9]{2,}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?"
# Of these the row's own text is taken, and nothing else.
_ROW_ONLY = {
    "float4": r"-?[0-9]+(\.[0-9]+)?(e[+-][0-9]+)?|NaN|-?Infinity",
    "float8": r"-?[0-9]+(\.[0-9]+)?(e[+-][0-9]+)?|NaN|-?Infinity",
    "interval": rf"{_UNIT}( {_UNIT})*( {_CLOCK})?|{_CLOCK}",
    "json": "(?s:.*)",
    "jsonb": "(?s:.*)",
}


def text_of(t: Type, form: str | None, value: Value) -> str | bytes | None:
    """What the source prints for a value of the type; None for NULL."""
    if value is None:
        return None
    try:
        text = _text_of(t, form, value)
        if isinstance(text, str):
            text.encode()  # a lone surrogate is no character
    except (ValueError, ArithmeticError):  # what Python itself has no text for: an integer of 5,000 digits, a time beyond year 1
        text = None
    if text is None:
        hint = "a RowText, or a normal form in the template" if _several(t, form) else "docs/reader.md says what the type takes"
        raise BadVariable(f"a {type(value).__name__} is not known to be what Postgres prints for {t.shown or 'a key'}: {hint}")
    return text


def _several(t: Type, form: str | None) -> bool:
    """Whether one row can be found under several texts."""
    return (
        t.nondeterministic
        or (t.name == "citext" and form != "lower")
        or (t.name == "numeric" and t.modifier < 0 and form != "number")
        or (t.name == "bpchar" and t.domain and t.modifier < 0 and form != "rtrim")
        or t.name in _ROW_ONLY
    )


def _text_of(t: Type, form: str | None, value: Value) -> str | bytes | None:
    # Of a class that is based on str or int (an enum) the text is that of its base, which is what a
    # driver sends: str() may be a name instead.
    row = isinstance(value, RowText)
    if _several(t, form):
        if not row or t.name == "bpchar":
            return None
        pattern = _ROW_ONLY.get(t.name, r"-?[0-9]+(\.[0-9]+)?|NaN|-?Infinity" if t.name == "numeric" else "(?s:.*)")
        return str.__str__(value) if re.fullmatch(pattern, value) else None
    if isinstance(value, bool):
        return ("t" if value else "f") if t.name in ("bool", "") else None
    if isinstance(value, int):
        value = int.__pos__(value)
        if t.name in _INTEGERS:
            return str(value) if t.name not in _UNSIGNED or 0 <= value < _UNSIGNED[t.name] else None
        if t.name == "numeric":
            return _numeric(t, decimal.Decimal(value))
        return _text(t, str(value)) if t.name in ("text", "varchar", "bpchar", "name", "citext", "") else None
    if isinstance(value, bytes):
        if t.name == "bytea":
            return "\\x" + bytes.hex(value)
        return _text(t, value) if t.name in _TEXTS or t.name == "" else None
    if isinstance(value, str):
        return _string(t, form, str.__str__(value))
    if isinstance(value, uuid.UUID):
        return uuid.UUID.__str__(value) if t.name in ("uuid", "text", "varchar", "") else None
    if isinstance(value, decimal.Decimal):
        return _numeric(t, value) if t.name == "numeric" else None
    if isinstance(value, (dt.datetime, dt.date, dt.time)):
        return _time(t, value)
    return _address(t, value)


def _text(t: Type, value: str | bytes) -> str | bytes | None:
    if t.name == "bpchar":
        blank = b" " if isinstance(value, bytes) else " "
        value = value.rstrip(blank)
        if t.domain:  # of a domain the log does not say that it is one over char(n): the padding stays
            length = len(value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value)
            value += blank * (t.modifier - 4 - length)
    if t.name == "name" and len(value if isinstance(value, bytes) else value.encode()) > 63:
        return None
    if t.name == "char" and (len(value) > 1 or not value.isascii()):
        return None
    return value


def _string(t: Type, form: str | None, s: str) -> str | bytes | None:
    if t.name in _TEXTS or t.name == "":
        return _text(t, s)
    if t.name in _INTEGERS:
        ok = re.fullmatch("-?[1-9][0-9]{,40}|0", s) and (t.name not in _UNSIGNED or 0 <= int(s) < _UNSIGNED[t.name])
    elif t.name == "numeric":
        if not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?|NaN|-?Infinity", s):
            return None
        printed = _numeric(t, decimal.Decimal(s))
        return printed if form == "number" else s if printed == s else None
    elif t.name in ("date", "timestamp", "timestamptz"):
        ok = s in ("infinity", "-infinity") or _is_time(t, s)
    elif t.name == "time":
        ok = _is_time(t, s)
    elif t.name in ("inet", "cidr"):
        try:
            ok = _address(t, ipaddress.ip_interface(s)) == s
        except ValueError:
            return None
    elif t.name == "bit":
        ok = re.fullmatch("[01]*", s) and len(s) == t.modifier
    else:
        ok = t.name in _PRINTED and re.fullmatch(_PRINTED[t.name], s)
    return s if ok else None


def _numeric(t: Type, n: decimal.Decimal) -> str | None:
    if not n.is_finite():
        text = decimal.Decimal.__str__(n)  # there are -NaN, sNaN and NaN123, which are no numbers of Postgres
        return text if text == "NaN" or text in ("Infinity", "-Infinity") and t.modifier < 0 else None
    sign, digits, exponent = n.as_tuple()
    assert isinstance(exponent, int)
    if abs(exponent) > 20000:
        return None
    text = "".join(map(str, digits)).lstrip("0")
    while text.endswith("0"):
        text, exponent = text[:-1], exponent + 1
    if not text:
        sign, text, exponent = 0, "0", 0
    scale = max(0, -exponent) if t.modifier < 0 else ((t.modifier - 4) & 0x7FF ^ 1024) - 1024
    if text != "0" and exponent < -scale:
        return None  # finer than the column
    if exponent >= 0:
        whole, fraction = text + ("0" * exponent if text != "0" else ""), ""
    else:
        text = text.rjust(1 - exponent, "0")
        whole, fraction = text[:exponent], text[exponent:]
    return ("-" if sign else "") + whole + ("." + fraction.ljust(scale, "0") if scale > 0 else "")


def _clock(t: Type, micros: int) -> str | None:
    precision = t.modifier if 0 <= t.modifier <= 6 else 6
    if micros % 10 ** (6 - precision):
        return None  # finer than the column
    return (f".{micros:06d}".rstrip("0")) if micros else ""


def _time(t: Type, v: dt.datetime | dt.date | dt.time) -> str | None:
    if getattr(v, "nanosecond", 0):
        return None  # pandas' is finer than any column
    if isinstance(v, dt.datetime):
        if t.name == "timestamptz" and v.tzinfo is not None:
            v = v.astimezone(dt.timezone.utc)
        elif t.name != "timestamp" or v.tzinfo is not None:
            return None
        fraction = _clock(t, v.microsecond)
        if fraction is None:
            return None
        return f"{_date(v)} {_hour(v)}{fraction}{'+00' if t.name == 'timestamptz' else ''}"
    if isinstance(v, dt.date):
        return _date(v) if t.name == "date" else None
    if t.name != "time" or v.tzinfo is not None:
        return None
    fraction = _clock(t, v.microsecond)
    return None if fraction is None else f"{_hour(v)}{fraction}"


def _date(v: dt.date) -> str:
    return f"{v.year:04d}-{v.month:02d}-{v.day:02d}"


def _hour(v: dt.datetime | dt.time) -> str:
    return f"{v.hour:02d}:{v.minute:02d}:{v.second:02d}"


def _is_time(t: Type, s: str) -> bool:
    """Of years that Python knows. BC, years of five digits and 24:00:00 are given as RowText in other readers."""
    try:
        match t.name:
            case "date":
                return len(s) == 10 and _time(t, dt.date.fromisoformat(s)) == s
            case "time":
                return _time(t, dt.time.fromisoformat(s)) == s
            case "timestamp":
                return _time(t, dt.datetime.fromisoformat(s)) == s
        return s.endswith("+00") and _time(t, dt.datetime.fromisoformat(s + ":00")) == s
    except ValueError:
        return False


def _address(t: Type, v: object) -> str | None:
    if t.name not in ("inet", "cidr"):
        return None
    if isinstance(v, (ipaddress.IPv4Network, ipaddress.IPv6Network)):
        ip, length = v.network_address, v.prefixlen
    elif isinstance(v, (ipaddress.IPv4Interface, ipaddress.IPv6Interface)):
        ip, length = v.ip, v.network.prefixlen
        if t.name == "cidr" and ip != v.network.network_address:
            return None
    elif isinstance(v, (ipaddress.IPv4Address, ipaddress.IPv6Address)):
        ip, length = v, v.max_prefixlen
    else:
        return None
    if getattr(ip, "scope_id", None) is not None:
        return None
    text = str(ip)
    if isinstance(ip, ipaddress.IPv6Address):  # Postgres shows an IPv4 address in it as such
        n = int(ip)
        if n >> 32 == 0xFFFF:
            text = f"::ffff:{ipaddress.IPv4Address(n & 0xFFFFFFFF)}"
        elif n >> 32 == 0 and n >> 16:
            text = f"::{ipaddress.IPv4Address(n)}"
    return text if t.name == "inet" and length == ip.max_prefixlen else f"{text}/{length}"
