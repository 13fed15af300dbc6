"""Counts rejected orders per user and reason, and alerts on a burst. Its state is an SQLite file. Beside make run:

    pip install nats-py && python3 deploy/examples/risk.py nats
    pip install kafka-python lz4 && python3 deploy/examples/risk.py kafka

NATS_URL and NATS_PASSWORD are those of the user risk of deploy/nats/users.conf; KAFKA_BROKERS, KAFKA_PASSWORD and
KAFKA_CA (a file) those of deploy/kafka/acls.sh. STATE is the file; BURST and SECONDS say what a burst is.
"""
import asyncio
import contextlib
import json
import os
import sqlite3
import sys

import tracker

BURST, SECONDS = int(os.environ.get("BURST", "5")), int(os.environ.get("SECONDS", "60"))


def open_state(path):
    db = sqlite3.connect(path)
    db.execute("""CREATE TABLE IF NOT EXISTS rejects (
        order_key TEXT PRIMARY KEY, user TEXT, reason TEXT, received_at TEXT, state TEXT)""")
    db.execute("CREATE INDEX IF NOT EXISTS of_user ON rejects (user, received_at)")
    # An alert is stored with the reject that causes it, and printed after it, once more if the program was killed then.
    db.execute("CREATE TABLE IF NOT EXISTS alerts (user TEXT PRIMARY KEY, at TEXT, orders INTEGER, printed INTEGER)")
    return db


def print_alerts(db):
    for user, orders in db.execute("SELECT user, orders FROM alerts WHERE NOT printed").fetchall():
        print(f"ALERT {user or '?'}: {orders} orders rejected within {SECONDS} s", flush=True)
    with db:
        db.execute("UPDATE alerts SET printed = 1")


def handle(db, data, headers):
    """Count an order once, whatever comes again. The caller acknowledges the message after it."""
    m = tracker.decode(data, headers)
    if m.get("user_id") == "CANARY":
        return
    key = tracker.state_key(m)
    with db:  # one transaction: the count and the state that keeps it from being counted again
        row = db.execute("SELECT state FROM rejects WHERE order_key = ?", (key,)).fetchone()
        change = tracker.apply(json.loads(row[0]) if row else {}, m)
        if change.verdict != "new":
            return
        user, reason = m.get("user_id", ""), m.get("reason_code") or m.get("reason", "")
        db.execute("INSERT OR REPLACE INTO rejects VALUES (?, ?, ?, ?, ?)",
                   (key, user, reason, m["received_at"], json.dumps(change.state)))
        db.execute("DELETE FROM rejects WHERE julianday(received_at) < julianday('now', '-10 days')")
        of_reason = db.execute("SELECT count(*) FROM rejects WHERE user = ? AND reason = ?",
                               (user, reason)).fetchone()[0]
        # Rejects may come in any sequence, so every window of that length with this one in it counts.
        near = [r[0] for r in db.execute("""SELECT (julianday(received_at) - julianday(?)) * 86400 AS s FROM rejects
            WHERE user = ? AND abs(s) <= ? ORDER BY s""", (m["received_at"], user, SECONDS))]
        burst = any(last - first <= SECONDS for first, last in zip(near, near[BURST - 1:]))
        last = db.execute("""SELECT 1 FROM alerts WHERE user = ?
            AND abs(julianday(?) - julianday(at)) * 86400 <= ?""", (user, m["received_at"], SECONDS)).fetchone()
        if burst and not last:
            db.execute("INSERT OR REPLACE INTO alerts VALUES (?, ?, ?, 0)", (user, m["received_at"], BURST))
    print(f"rejected {tracker.key(m)}: {reason or 'no reason given'}; {of_reason} of {user or '?'}", flush=True)
    print_alerts(db)


async def from_nats(db):
    import nats

    async def log(error):
        print(f"risk: {error!r}", file=sys.stderr)

    nc = await nats.connect(os.environ.get("NATS_URL", "nats://127.0.0.1:4222"), max_reconnect_attempts=-1,
                            user="risk", password=os.environ.get("NATS_PASSWORD", ""), inbox_prefix=b"_INBOX_risk",
                            error_cb=log)
    # Redelivery keeps the sequence, and after a crash comes within five seconds.
    config = nats.js.api.ConsumerConfig(max_ack_pending=1, ack_wait=5)
    while True:
        try:
            rejects = await nc.jetstream().pull_subscribe("rejects.>", durable="risk", stream="REJECTS", config=config)
            while True:
                try:
                    for message in await rejects.fetch(1, timeout=5):
                        handle(db, message.data, message.headers)
                        await message.ack()
                except nats.errors.TimeoutError:
                    pass  # nothing new
        except nats.errors.Error as error:  # the stream or the durable consumer is gone: create the consumer again
            await log(error)
            await asyncio.sleep(1)


def from_kafka(db):
    from kafka import KafkaConsumer

    login = {}
    if "KAFKA_PASSWORD" in os.environ:
        login = dict(security_protocol="SASL_SSL", sasl_mechanism="SCRAM-SHA-512", sasl_plain_username="risk",
                     sasl_plain_password=os.environ["KAFKA_PASSWORD"], ssl_cafile=os.environ.get("KAFKA_CA"))
    rejects = KafkaConsumer("rejects", bootstrap_servers=os.environ.get("KAFKA_BROKERS", "127.0.0.1:9092").split(","),
                            group_id="risk", auto_offset_reset="earliest", enable_auto_commit=False, **login)
    with contextlib.closing(rejects):  # it leaves the group at once; one that was killed, after 45 seconds
        while True:
            for records in rejects.poll(timeout_ms=1000).values():
                for record in records:
                    handle(db, record.value, record.headers)
            rejects.commit()  # once per poll, after handling


if __name__ == "__main__":
    state = open_state(os.environ.get("STATE", "risk.db"))
    print_alerts(state)
    try:
        asyncio.run(from_nats(state)) if sys.argv[1:] == ["nats"] else from_kafka(state)
    except KeyboardInterrupt:
        pass
