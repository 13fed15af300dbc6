"""Which events of an order are new, and how much of the filled quantity is.

These are the rules of Tracker in package bridge/event, which has the reasons; deploy/samples/tracker.json holds both to
the same results. Copy this file beside your program; it needs Python 3.9 and nothing else.

    tracker = Tracker(snapshot)                    # snapshot: what tracker.snapshot() returned, or None
    message = decode(data, headers)                # of a NATS message or a Kafka record
    change = tracker.apply(message)
    if change.new_fill: ...

Store the snapshot, together with what you computed, before you acknowledge a message. It has all orders: with more than
a few thousand, keep the state of each order in a row of a database and use apply(state, message), as risk.py does.
"""
import collections
import datetime
import fractions
import hashlib
import json
import re

TYPES = ("postbridge.order.v1", "postbridge.other.v1")
TERMINAL = ("filled", "cancelled", "rejected", "expired")
DAY = 24 * 3600 * 10**9  # nanoseconds
MAX_SKEW = 10 * 10**9  # how far the clocks of replicas may differ

# verdict is "new", "repeat" or "late"; state is a dict: status, filled_quantity, average_price ...
Change = collections.namedtuple("Change", "verdict new_fill fill_price corrected state")


class UnknownSchema(Exception):
    """The event is of a newer schema. Stop; do not skip it."""


class Full(Exception):
    """There is no space for the order. Stop, without an acknowledgement, and raise max_orders."""


def decode(data, headers):
    """Return the event as a dict, with "spool" and "sequence" from the headers.

    headers is the dict of nats-py, the list of pairs of kafka-python and confluent-kafka, or None.
    """
    text = {name.replace("_", "-"): value for name, value in dict(headers or ()).items()}  # on Kafka ce_type, in bytes
    text = {name: value.decode() if isinstance(value, bytes) else value for name, value in text.items()}
    if text.get("ce-type", TYPES[0]) not in TYPES:
        raise UnknownSchema(f"the event is of type {text['ce-type']}, want {TYPES[0]}; update tracker.py")
    event = json.loads(data)
    if not all(event.get(name) for name in ("id", "broker", "status")):
        raise ValueError("the message is not an event of postbridge: it has no id, broker or status")
    return dict(event, spool=text.get("ce-spool", ""), sequence=int(text.get("ce-sequence") or 0))


def escape(text):
    """Escape an id as one token of a NATS subject or Kafka key."""
    token = "".join(chr(c) if re.match(rb"[0-9A-Za-z_-]", bytes([c])) else f"%{c:02X}" for c in text.encode())
    return (token or "_") if len(token) <= 64 else hashlib.sha256(text.encode()).hexdigest()


def key(event):
    """Return the key of an event's order: the Kafka key, and the NATS subject behind the destination."""
    return ".".join((event["broker"], escape(event.get("user_id", "")), escape(event.get("order_id", ""))))


def state_key(event):
    """Return the key of the state of an order: of Dhan, with the leg, since legs share the order id."""
    leg = event.get("leg", "")
    return key(event) + ("." + escape(leg) if leg.endswith("_leg") else "")


def apply(state, m):
    """Apply a message to the state of its order, {} at first. The new state is change.state."""
    if state and m["id"] == state["id"]:
        return Change("repeat", 0, "", 0, state)
    return Change("late", 0, "", 0, state) if state and newer(state, m) else change(state, m)


def newer(state, m):
    """Report whether the state is newer: by the order book, then by the broker's own word, and last by our numbers."""
    in_book = m.get("source") == "order_book"
    since_book = since(state.get("book"), m.get("received_at"))
    if since_book is not None and (since_book <= 0 if in_book else since_book < -MAX_SKEW):
        return True
    if in_book and (since(state.get("received_at"), m.get("received_at")) or 0) > 0:
        return False
    terminal = state["status"] in TERMINAL
    if terminal != (m["status"] in TERMINAL):
        return terminal
    since_update = since(state.get("updated_time"), m.get("updated_time"))
    if since_update and state.get("at_exchange", False) == ("exchange_time" in m):  # else another clock
        return since_update < 0
    filled = filled_after(state, m)
    if filled != state["filled_quantity"]:
        return filled < state["filled_quantity"]
    return bool(state.get("spool")) and state["spool"] == m["spool"] and m["sequence"] <= state.get("sequence", 0)


def since(first, second):
    """Return how much later the second of two times is, in nanoseconds; None if one is not known."""
    a, b = nanoseconds(first), nanoseconds(second)
    return None if a is None or b is None else b - a


def nanoseconds(text):
    match = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)", text or "")
    if not match:
        return None
    seconds = datetime.datetime.fromisoformat(match[1] + match[3].replace("Z", "+00:00")).timestamp()
    return int(seconds) * 10**9 + int((match[2] or "").ljust(9, "0")[:9])


def filled_after(state, m):
    if "filled_quantity" in m:
        return m["filled_quantity"]
    if m["status"] == "filled" and "quantity" in m:
        return m["quantity"]
    return state.get("filled_quantity", 0)


def change(state, m):
    before, filled = state.get("filled_quantity", 0), filled_after(state, m)
    average = m.get("average_price", "")
    if price(average) is None:
        average = state.get("average_price", "") if filled == before else ""
    paid = fill_price(state.get("average_price", ""), before, average, filled) if filled > before else ""
    after = {
        "id": m["id"], "status": m["status"], "filled_quantity": filled, "average_price": average,
        "updated_time": m.get("updated_time"), "at_exchange": "exchange_time" in m, "received_at": m["received_at"],
        "book": m["received_at"] if m.get("source") == "order_book" else state.get("book"),
        "spool": m["spool"], "sequence": m["sequence"],
    }
    required = ("id", "status", "filled_quantity", "received_at")
    after = {name: value for name, value in after.items() if value or name in required}
    return Change("new", max(filled - before, 0), paid, max(before - filled, 0), after)


def fill_price(average1, filled1, average2, filled2):
    """Return the average price of the fills between two states of an order, to 6 places; "" if it is not known."""
    p1, p2 = price(average1), price(average2)
    if p2 is None or (filled1 and p1 is None):
        return ""
    if not filled1:
        return average2
    millionths = (p2 * filled2 - p1 * filled1) / (filled2 - filled1) * 10**6
    if millionths <= 0:
        return ""  # a broker's rounding, or error
    whole, rest = divmod(int(millionths + fractions.Fraction(1, 2)), 10**6)
    return f"{whole}.{rest:06}".rstrip("0").rstrip(".")


def price(text):
    """Return a price of a fill, None if it is not known: brokers write 0 then."""
    p = fractions.Fraction(text) if re.fullmatch(r"-?\d+(\.\d+)?", text or "") else 0
    return p if p > 0 else None


class Tracker:
    """Keeps the state of each order in bounded memory.

    Beyond max_orders, the order without an event for longest is forgotten, a day after its last event was received;
    before that, apply raises Full.
    """

    def __init__(self, snapshot=None, max_orders=100_000):
        snapshot = snapshot or {}
        self.max_orders, self.forgotten = max_orders, snapshot.get("forgotten")
        self.orders = {o["key"]: {n: v for n, v in o.items() if n != "key"} for o in snapshot.get("orders", ())}

    def apply(self, m):
        if not m.get("order_id"):
            return Change("new", 0, "", 0, {})
        order = state_key(m)
        if order not in self.orders:
            since_forgotten = since(self.forgotten, m.get("received_at"))
            if since_forgotten is not None and since_forgotten <= 0:
                return Change("late", 0, "", 0, {})
            self.make_space(m.get("received_at"))
        before = self.orders.get(order, {})
        result = apply(before, m)
        self.orders.pop(order, None)  # to the end: its event came last
        self.orders[order] = dict(result.state, seen=later(seen(before), m.get("received_at")))
        return result

    def make_space(self, now):
        """Forget orders until there is space for one whose event was received now."""
        while len(self.orders) >= self.max_orders:
            longest = next(iter(self.orders))  # without an event
            since_seen = since(seen(self.orders[longest]), now)
            if since_seen is None or since_seen <= DAY:
                raise Full(f"more than {self.max_orders} orders changed within a day; raise max_orders")
            self.forgotten = later(self.forgotten, seen(self.orders.pop(longest)))

    def snapshot(self):
        """Return the snapshot, for json.dumps. It is that of Go's Tracker, too."""
        orders = [dict(state, key=order) for order, state in self.orders.items()]
        return dict({"forgotten": self.forgotten} if self.forgotten else {}, orders=orders)


def seen(state):
    """Return the received_at of the latest event of an order, also of a repeat or a late one."""
    return state.get("seen") or state.get("received_at")  # a snapshot of an earlier version has no seen


def later(first, second):
    """Return the later of two times, of which the second is empty or known."""
    return second if not first or (since(first, second) or 0) > 0 else first
