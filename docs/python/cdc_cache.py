"""A reader of cdc-invalidator's cache in Python, after docs/protocol.md.

It needs redis-py and psycopg 3, the scripts of cache/lua, and cdc_keys.py beside it. Copy it, and
change what does not suit. It has no threads of its own and is safe to share between
threads. Times are seconds.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg
import redis
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from cdc_keys import FREE, MAX_KEY_LENGTH, BadVariable, RowText, Type, TypesUnknown, Value, encode, normal, read_type, terms, text_of

__all__ = ["BadVariable", "Cache", "Entry", "Family", "NotFound", "RowText", "TooSlow", "token_after_commit"]

Loader = Callable[[psycopg.Connection, Callable[..., None]], bytes]  # load(connection, depends_on)

_VARIABLE = re.compile(r"\{\{|\}\}|\{(\w+)(?:\|(\w+))?\}")
_TYPES_FOR = 10.0  # seconds that the types of columns are believed
_HEADER = 73


class NotFound(Exception):
    """Raised by a loader whose row is not there; kept as a negative entry."""


class _Elsewhere(redis.RedisError):
    """A connection led to another server than the one whose control hash was read."""


class TooSlow(Exception):
    """Every load took longer than the class allows a value to be old."""


@dataclass(frozen=True)
class Family:
    """What mappings.yaml says of a family, its class included."""

    name: str
    key: str  # template
    staleness: float
    ttl: float = 3600
    version: str = ""  # template of the version key
    stale_for: float = 0
    fail_safe: float = 0
    negative_ttl: float = 60
    hold: float = 0  # how long the daemon may keep an invalidation back
    serve_in_doubt: bool = False  # on_doubt: serve
    # Where each variable comes from in the mappings: {"id": ("public.users.id", ...)}. A variable that none tells is not here.
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def variables(self) -> set[str]:
        """The names of those that a read gives values for."""
        names = {m[1] for m in _VARIABLE.finditer(self.key) if m[1]}
        return names - {"version"} if self.version else names


@dataclass(frozen=True)
class Entry:
    found: bool  # False: a negative entry
    stamp: str
    fresh_until: int
    lsn: str
    snapshot: str
    payload: bytes

    @classmethod
    def parse(cls, raw: bytes | None) -> Entry | None:
        """None for a lease, and for anything that is no entry."""
        try:
            return cls._parse(raw)
        except ValueError:
            return None

    @classmethod
    def _parse(cls, raw: bytes | None) -> Entry | None:
        if raw is None or raw[:4] != b"cdc2" or raw[4:5] not in (b"V", b"N"):
            return None
        fields, newline, payload = raw[_HEADER:].partition(b"\n")
        if not newline:
            return None
        _loaded_at, _load_time, lsn, snapshot, *_later_versions = fields.decode().split()
        return cls(raw[4:5] == b"V", raw[57:73].decode(), int(raw[33:45], 16), lsn, snapshot, payload)

    def contains(self, token: str | None) -> bool:
        """Whether everything that was visible at the token's moment was visible to the load."""
        if token is None:
            return True
        _version, lsn, seen = token.split(".")
        if self.snapshot == "-":  # loaded on a standby
            return self.lsn >= lsn
        xmax, xip = _snapshot(self.snapshot)
        token_xmax, token_xip = _snapshot(seen.replace("-", ":").replace("_", ","))
        return xmax >= token_xmax and {x for x in xip if x < token_xmax} <= token_xip


def _snapshot(text: str) -> tuple[int, set[int]]:
    _xmin, xmax, xip = text.split(":")
    return int(xmax), {int(x) for x in xip.split(",") if x}


Types = Mapping[str, tuple[Type, ...]]  # of the columns that each variable comes from


def render(template: str, variables: Mapping[str, Value], types: Types) -> str:
    key = _VARIABLE.sub(lambda m: _variable(m, variables, types) if m[1] else m[0][0], template)
    if len(key.encode()) > MAX_KEY_LENGTH:
        raise BadVariable(f"key {template}: the key would be longer than {MAX_KEY_LENGTH} bytes, with its values as they stand in it")
    return key


def _variable(m: re.Match[str], variables: Mapping[str, Value], types: Types) -> str:
    value = variables[m[1]]
    texts = {encode(normal(m[2], text_of(t, m[2], value))) for t in types.get(m[1], ()) or (FREE,)}
    if len(texts) > 1:
        raise BadVariable(f"{m[1]} comes from columns that print it in different ways")
    return texts.pop()


def token_after_commit(conn: psycopg.Connection) -> str:
    """For get(at_least=...), here or in another language. To be called after the write's commit."""
    if conn.info.transaction_status is not TransactionStatus.IDLE:
        raise ValueError("the transaction on this connection is open: commit it first")
    with conn.transaction():
        ask = "SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn, pg_current_snapshot()::text"
        lsn, seen = conn.cursor(row_factory=tuple_row).execute(ask).fetchone()
    return f"1.{int(lsn):016x}.{seen.replace(':', '-').replace(',', '_')}"


@dataclass
class _Old:
    """What may be returned when the source is down, until then."""

    entry: Entry
    until: float

    @classmethod
    def of(cls, family: Family, entry: Entry | None, at_least: str | None, until: float) -> _Old | None:
        if not family.fail_safe or entry is None or not entry.found or not entry.contains(at_least):
            return None
        return cls(entry, until + family.fail_safe)


@dataclass
class _Load:
    payload: bytes | None  # None: not found
    snapshot: str
    began: float
    whole: bool  # the transaction is still the one of the snapshot


@dataclass
class _Answer:
    key: str = ""
    entry: Entry | None = None  # to be returned
    token: str = ""  # of our lease; without one the load is not to be stored
    old: _Old | None = None


class Cache:
    """connect gives a connection to the primary, as psycopg.connect(...) or pool.connection() do."""

    def __init__(
        self,
        rdb: redis.Redis,
        connect: Callable[[], AbstractContextManager[psycopg.Connection]],
        lua: Path,
        *,
        prefix: str = "inv:",
        slot: str = "cdc_invalidator",
        lease: float = 5,
        entities: Mapping[str, tuple[tuple[str, ...], ...]] | None = None,
    ) -> None:
        """entities says where the values of dependents come from: {"seller": (("public.sellers.id",),)}."""
        self._rdb, self._connect, self._prefix, self._lease = rdb, connect, prefix, lease
        self._control, self._stamps_key = f"{prefix}source:{{{slot}}}", f"{prefix}stamps:{{{slot}}}"
        scripts = (rdb.register_script((lua / f"{n}.lua").read_bytes()) for n in ("read", "fill", "release", "register"))
        self._read, self._fill, self._release, self._register = scripts
        self._stamps: tuple[bytes, dict] = b"", {}  # revision, and what it says
        self._entities = entities or {}
        self._types: tuple[dict[str, Type], float] = {}, 0.0  # by column, and until when
        self._source_clock: tuple[float, float] | None = None  # it said the second a little after the first
        self._reconnected = 0.0  # when the connections were last dropped

    def get(
        self,
        family: Family,
        variables: Mapping[str, Value],
        load: Loader,
        *,
        depends_on: Iterable[tuple[Value, ...]] = (),
        at_least: str | None = None,
    ) -> bytes:
        """The cached value, or a loaded one. NotFound where there is no row."""
        patience = time.monotonic() + self._lease
        declared, entities = list(depends_on), set()
        for _ in range(3):
            try:
                entities |= {self._entity(*e) for e in declared}
                answer = self._ask(family, variables, at_least, patience)
            except (redis.RedisError, psycopg.Error, TypesUnknown):
                answer = _Answer()  # straight to the source
            if answer.entry is not None:
                return _found(answer.entry.payload if answer.entry.found else None)
            try:
                loaded = self._load_registered(family, answer, load, entities)
            except BaseException as err:
                self._give_up(answer)
                if isinstance(err, psycopg.OperationalError) and answer.old and time.monotonic() < answer.old.until:
                    return answer.old.entry.payload
                raise
            self._store(family, answer, loaded)
            if time.monotonic() - loaded.began <= family.staleness:
                return _found(loaded.payload)
            # Too old to be returned as loaded. If it was stored, the next look shows whether it still holds.
        raise TooSlow(f"{family.name}: three loads took longer than {family.staleness} s")

    def _look(self, family: Family, variables: Mapping[str, Value]) -> tuple[float, int, str, str, Entry | None, str]:
        """Until when (time.monotonic) the class is proved, Redis' clock in ms, the family's stamp ("" for none), the key,
        its entry, and the server. The control hash comes first: what it proves holds for what is read later, versions
        included, not for what was read before. It holds on the same server: each further step says where it was, see _same."""
        types = self._types_of(family.columns)
        name = render(family.version or family.key, variables, types)
        with self._rdb.pipeline(transaction=False) as p:
            p.info("replication").hmget(self._control, "state", "fresh_as_of", "stamps").time().get(name)
            info, control, (seconds, micros), raw = p.execute(raise_on_error=False)
        server = _primary(info)
        if family.version:
            name, raw = self._versioned(family, variables, types, name, raw, server)
        if isinstance(raw, redis.ResponseError):  # another type: read.lua replaces it
            raw = None
        stamp = self._stamp(family, types, control)
        until = self._proved_until(family, control) if stamp or family.serve_in_doubt else -math.inf
        if time.monotonic() >= until:
            self._reconnect()
        entry = Entry.parse(raw)
        if entry is not None and entry.stamp != stamp and (stamp or not family.serve_in_doubt):
            entry = None  # of before the family was followed, or of another reader's file
        return until, seconds * 1000 + micros // 1000, stamp, name, entry, server

    def _stamp(self, family: Family, types: Types, control: object) -> str:
        """Under which entries of the family are believed. The hash names the text that held when it was read; types are
        what the key was made with. Where stamps move, they may be others by now: the next key is made with new ones."""
        revision = control[2] if isinstance(control, list) else None
        if not revision:
            return ""
        if revision != self._stamps[0]:
            stamps = json.loads(self._rdb.get(self._stamps_key) or b"{}")
            if stamps.get("revision") != revision.decode():
                return ""  # gone, or newer: the next look has both
            self._stamps, self._types = (revision, stamps), ({}, 0.0)
        theirs = self._stamps[1]["families"].get(family.name, {})
        told = {name: types.get(name, ()) for name in family.variables()}
        mine = (family.key, family.version, round(family.staleness * 1e6), round(family.hold * 1e6), terms(told))
        agreed = mine == tuple(theirs.get(term) for term in ("key", "version", "staleness", "hold", "types"))
        return theirs["stamp"] if agreed else ""

    def _followed(self, entity: str) -> bool:
        """Whether what is registered under the name will be removed with it. Should that change, all stamps move."""
        kind, *values = entity.split(":")
        columns = self._entities.get(kind, ((),) * len(values))
        known, _ = self._types
        if any(c not in known for names in columns for c in names):
            return False
        mine = terms({str(i + 1): tuple(known[c] for c in names) for i, names in enumerate(columns)})
        return self._stamps[1].get("entities", {}).get(kind) == {"variables": len(values), "types": mine}

    def _reconnect(self) -> None:
        """In doubt, at most once a second: behind a name the connections may lead to an old primary, where the daemon's
        hash stands still for as long as they live."""
        now = time.monotonic()
        if now - self._reconnected >= 1:
            self._reconnected = now
            self._rdb.connection_pool.disconnect(inuse_connections=False)

    def _versioned(
        self, family: Family, variables: Mapping[str, Value], types: Types, name: str, version: object, server: str
    ) -> tuple[str, object]:
        if version is None:
            # Never a version that was used before: what was stored under it is not revoked.
            self._rdb.set(name, "0" * 16 + secrets.token_hex(8) + "0" * 8, nx=True)
            version = self._rdb.get(name)
        if not isinstance(version, bytes):
            raise redis.ResponseError(f"no version: {version}")
        key = render(family.key, {**variables, "version": version}, types)
        with self._rdb.pipeline(transaction=False) as p:
            info, raw = p.info("replication").get(key).execute(raise_on_error=False)
        _same(info, server)
        return key, raw

    def _proved_until(self, family: Family, control: object) -> float:
        if family.serve_in_doubt:
            return math.inf
        if not isinstance(control, list) or control[0] not in (b"ok", b"catching_up") or not control[1]:
            return -math.inf
        try:
            age = self._source_now() - int(control[1], 16) / 1e6
        except psycopg.Error:
            return -math.inf  # what cannot be proved is asked of the source, which will say so itself
        if age < 0:  # its clock was set: what is known of it is wrong
            self._source_clock = None
            return -math.inf
        return time.monotonic() + family.staleness - family.hold - age

    def _ask(self, family: Family, variables: Mapping[str, Value], at_least: str | None, patience: float) -> _Answer:
        unreadable = False
        while True:
            token = secrets.token_hex(8)  # of one call alone: a copy that is late must not bring a revoked lease back
            until, now, stamp, key, entry, server = self._look(family, variables)  # the version, too: it may move during a wait
            old = _Old.of(family, entry, at_least, until)
            if time.monotonic() >= until:
                return _Answer(old=old)
            if entry is not None and now < entry.fresh_until and entry.contains(at_least):
                return _Answer(entry=entry)
            mode = "read" if at_least is None and not unreadable else "refresh"
            try:
                with self._rdb.pipeline(transaction=False) as p:
                    p.info("replication").evalsha(self._read.sha, 1, key, token, int(self._lease * 1000), mode, stamp)
                    info, (what, *rest) = p.execute()
            except redis.exceptions.NoScriptError:
                self._rdb.script_load(self._read.script)
                continue
            _same(info, server)
            if what == b"lease":
                return _Answer(key, token=token)
            entry = Entry.parse(rest[0]) if what != b"wait" else None
            old = _Old.of(family, entry, at_least, until)
            if what in (b"value", b"stale"):
                if entry is None and not unreadable:  # read.lua looks at the header only
                    unreadable = True
                    continue
                good = entry is not None and entry.contains(at_least) and time.monotonic() < until
                return _Answer(entry=entry if good else None)
            if what in (b"refresh", b"expired"):  # the first could be served while a thread refreshes it
                return _Answer(key, token=token, old=old)
            left = patience - time.monotonic()  # wait, held
            if left <= 0:
                return _Answer(old=old)
            time.sleep(min(left, rest[-1] / 1000, random.uniform(0.005, 0.03)))

    def _load_registered(self, family: Family, answer: _Answer, load: Loader, entities: set[str]) -> _Load:
        """Loads; every entity is registered before the snapshot of the load that is stored."""
        registered: set[str] = set()
        followed = True
        life = self._lease + max(family.ttl + family.stale_for + family.fail_safe, family.negative_ttl)
        for _ in range(3):
            new = entities - registered if answer.token else set()
            try:
                for entity in new:
                    followed = followed and self._followed(entity)  # else nobody would remove what depends on it
                    self._register(keys=[f"{self._prefix}dep:{entity}"], args=[int(life * 1000), f"{family.name} {answer.key}"])
            except redis.RedisError:
                answer.token = ""  # what is not registered is not stored
            registered |= new
            loaded = self._load(load, entities)
            loaded.whole = loaded.whole and followed
            if not answer.token or entities <= registered:
                return loaded
        loaded.whole = False  # it declares something else each time
        return loaded

    def _load(self, load: Loader, entities: set[str]) -> _Load:
        with self._connect() as conn, conn.transaction():
            conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            began = time.monotonic()
            snapshot, now = (
                conn.cursor(row_factory=tuple_row)
                .execute("SELECT pg_current_snapshot()::text, extract(epoch FROM clock_timestamp())::float8")
                .fetchone()
            )
            self._source_clock = began, now
            try:
                payload = load(conn, lambda kind, *values: entities.add(self._entity(kind, *values, conn=conn)))
            except NotFound:
                payload = None
            return _Load(payload, snapshot, began, conn.info.transaction_status is TransactionStatus.INTRANS)

    def _store(self, family: Family, answer: _Answer, loaded: _Load) -> None:
        lives = (family.ttl * random.uniform(0.9, 1), family.stale_for, family.fail_safe)
        if loaded.payload is None:
            lives = (family.negative_ttl, 0, 0)
        if not answer.token or not loaded.whole or lives[0] <= 0:
            return self._give_up(answer)
        took = time.monotonic() - loaded.began
        rest = f" {int(time.time() * 1000):012x} {int(took * 1000)} {'0' * 16} {loaded.snapshot}\n".encode()
        kind = "N" if loaded.payload is None else "V"
        try:
            self._fill(keys=[answer.key], args=[answer.token, kind, *(int(s * 1000) for s in lives), rest + (loaded.payload or b"")])
        except redis.RedisError:
            pass  # what was loaded is as good as before

    def _give_up(self, answer: _Answer) -> None:
        if answer.token:
            try:
                self._release(keys=[answer.key], args=[answer.token])
            except redis.RedisError:
                pass  # it expires

    def _types_of(self, columns: Mapping[str, tuple[str, ...]], conn: psycopg.Connection | None = None) -> Types:
        """Asks the source for the types, and again from time to time: DDL changes them. A key is never guessed."""
        known, until = self._types
        wanted = {c for names in columns.values() for c in names}
        fresh = known if time.monotonic() < until else {}
        if wanted - fresh.keys():
            stamps = self._stamps
            try:
                with contextlib.nullcontext(conn) if conn else self._connect() as asked, asked.transaction():
                    fresh = fresh | {c: read_type(asked, c) for c in wanted - fresh.keys()}
                if stamps is self._stamps:  # else they may be of before the stamps moved
                    self._types = fresh, until if time.monotonic() < until else time.monotonic() + _TYPES_FOR
            except psycopg.Error:
                if wanted - known.keys():
                    raise
                fresh = known  # it cannot be asked now: what is known stands
        return {name: tuple(fresh[c] for c in names) for name, names in columns.items()}

    def _entity(self, kind: str, *values: Value, conn: psycopg.Connection | None = None) -> str:
        columns = self._entities.get(kind, ((),) * len(values))
        types = self._types_of({str(i): c for i, c in enumerate(columns)}, conn)
        return render(":".join([kind, *(f"{{{i}}}" for i in range(len(values)))]), {str(i): v for i, v in enumerate(values)}, types)

    def _source_now(self) -> float:
        """The source's clock, never behind it."""
        if self._source_clock is None:
            self._load(lambda *_: b"", set())
        began, said = self._source_clock
        return said + (time.monotonic() - began) * 1.001


def _primary(info: object) -> str:
    """The history of the primary that has answered INFO: new after each start and each promotion."""
    if not isinstance(info, dict) or info.get("role") != "master":
        raise _Elsewhere(f"no primary, or the account lacks +info: {info if isinstance(info, Exception) else ''}")
    return info["master_replid"]


def _same(info: object, server: str) -> None:
    if _primary(info) != server:
        raise _Elsewhere("another server")


def _found(payload: bytes | None) -> bytes:
    if payload is None:
        raise NotFound
    return payload
