"""A postback handler for Kite as guides suggest it: proves the checksum, keeps the order, answers 200."""

import hashlib
import json
import os

from flask import Flask, abort, request

app = Flask(__name__)
secret = os.environ["KITE_API_SECRET"]
orders = open(os.environ["ORDERS_FILE"], "a", buffering=1)


@app.post("/kite")
def postback():
    order = request.get_json()
    signed = order["order_id"] + order["order_timestamp"] + secret
    if hashlib.sha256(signed.encode()).hexdigest() != order["checksum"]:
        abort(401)
    orders.write(json.dumps(order) + "\n")
    return ""
