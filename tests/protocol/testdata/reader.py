"""Drives docs/python/cdc_cache.py for the tests: one JSON object a line, both ways.

The first line says where everything is. Then {"id", "get", ...} begins a read in a thread
of its own; its loader says {"id", "event": "loading"} and does what {"id", "go": ...}
tells. {"id", "token": true} asks for a token. The end is the end of the input.
"""

import datetime
import decimal
import enum
import ipaddress
import json
import queue
import sys
import threading
import traceback
import uuid
from pathlib import Path

import psycopg
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

start = json.loads(sys.stdin.readline())
sys.path.insert(0, start["package"])
import cdc_cache  # noqa: E402

families = {
    f["name"]: cdc_cache.Family(**f | {"columns": {name: tuple(c) for name, c in (f["columns"] or {}).items()}})
    for f in start["families"]
}
cache = cdc_cache.Cache(
    redis.Redis.from_url(start["redis"], socket_timeout=5, retry=Retry(NoBackoff(), 0)),
    lambda: psycopg.connect(start["postgres"]),
    Path(start["lua"]),
    slot=start["slot"],
    lease=start["lease"],
    entities={kind: tuple(map(tuple, columns)) for kind, columns in start["entities"].items()},
)
steps: dict[int, queue.Queue] = {}
output = threading.Lock()


def say(message: dict) -> None:
    with output:
        print(json.dumps(message), flush=True)


MAKE = {
    "label": lambda text: enum.Enum("Label", {"THIS": text}, type=str).THIS,
    "number": lambda text: enum.Enum("Number", {"THIS": int(text)}, type=int).THIS,
    "bytes": bytes.fromhex,
    "decimal": decimal.Decimal,
    "uuid": uuid.UUID,
    "time": datetime.datetime.fromisoformat,
    "addr": ipaddress.ip_address,
    "prefix": ipaddress.ip_interface,
    "row": cdc_cache.RowText,
}


def value_of(v):
    if isinstance(v, dict):
        ((kind, text),) = v.items()
        return MAKE[kind](text)
    return v


def read(r: dict) -> None:
    def load(conn: psycopg.Connection, depends_on) -> bytes:
        say({"id": r["id"], "event": "loading"})
        step = steps[r["id"]].get()
        for kind, *values in r["depends_on"] or ():
            depends_on(kind, *values)
        match step:
            case "fail":
                raise ValueError("the loader fails, as it was told")
            case "down":
                conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")
            case "write":
                conn.execute("UPDATE items SET v = 'written' WHERE id = %s", [r["row"]])
            case "swallow":
                try:
                    conn.execute("UPDATE items SET v = 'written' WHERE id = %s", [r["row"]])
                except psycopg.Error:
                    return b"swallowed"
        row = conn.execute("SELECT v FROM items WHERE id = %s", [r["row"]]).fetchone()
        if row is None:
            raise cdc_cache.NotFound
        return row[0].encode()

    variables = {name: value_of(v) for name, v in r["vars"].items()}
    try:
        value = cache.get(families[r["get"]], variables, load, at_least=r["at_least"] or None)
        say({"id": r["id"], "event": "value", "value": value.decode()})
    except cdc_cache.NotFound:
        say({"id": r["id"], "event": "missing"})
    except Exception:
        say({"id": r["id"], "event": "error", "value": traceback.format_exc()})


say({"event": "ready"})
for line in sys.stdin:
    message = json.loads(line)
    if "get" in message:
        steps[message["id"]] = queue.Queue()
        threading.Thread(target=read, args=[message], daemon=True).start()
    elif "go" in message:
        steps[message["id"]].put(message["go"])
    else:
        with psycopg.connect(start["postgres"]) as connection:
            say({"id": message["id"], "event": "value", "value": cdc_cache.token_after_commit(connection)})
