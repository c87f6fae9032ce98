"""The suite: it changes the fixture, as suites do, and counts on finding it untouched."""

import json
import os
import unittest
import urllib.error
import urllib.request

BASE = "http://127.0.0.1:8000"


def get(path):
    with urllib.request.urlopen(BASE + path) as answer:
        return json.load(answer)


class Orders(unittest.TestCase):
    def test_an_order_is_found(self):
        self.assertEqual(set(get("/orders/42")), {"customer", "cents"})

    def test_an_unknown_order_is_not(self):
        with self.assertRaises(urllib.error.HTTPError) as failed:
            get("/orders/999999")
        self.assertEqual(failed.exception.code, 404)

    def test_a_new_order_gets_the_next_number(self):
        # Fails in any environment that an earlier run wrote to.
        request = urllib.request.Request(BASE + "/orders", method="POST")
        with urllib.request.urlopen(request) as answer:
            self.assertEqual(json.load(answer)["id"], 100000)

    @unittest.skipUnless(os.environ.get("CI_FAIL"), "shows what a failure looks like")
    def test_that_fails(self):
        self.assertEqual(get("/state")["orders"], 0)
