"""Runs the suite and writes a JUnit file: `junit.py OUT`. Exit code 1 when a test failed."""

import sys
import time
import unittest
from xml.sax.saxutils import escape, quoteattr


class Cases(unittest.TextTestResult):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.lines = []

    def startTest(self, test):
        self.begun = time.monotonic()
        super().startTest(test)

    def case(self, test, inside=""):
        group, _, name = test.id().rpartition(".")
        took = time.monotonic() - self.begun
        attributes = f"classname={quoteattr(group)} name={quoteattr(name)} time=\"{took:.3f}\""
        self.lines.append(f"  <testcase {attributes}>{inside}</testcase>")

    def addSuccess(self, test):
        super().addSuccess(test)
        self.case(test)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.case(test, f"<failure>{escape(self._exc_info_to_string(err, test))}</failure>")

    def addError(self, test, err):
        super().addError(test, err)
        self.case(test, f"<error>{escape(self._exc_info_to_string(err, test))}</error>")

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.case(test, f"<skipped message={quoteattr(reason)}/>")


tests = unittest.defaultTestLoader.discover("/srv/ci")
result = unittest.TextTestRunner(resultclass=Cases, verbosity=2).run(tests)
with open(sys.argv[1], "w") as out:
    out.write('<?xml version="1.0" encoding="UTF-8"?>\n')
    out.write(
        f'<testsuite name="orders" tests="{result.testsRun}" failures="{len(result.failures)}" '
        f'errors="{len(result.errors)}" skipped="{len(result.skipped)}">\n'
    )
    out.write("\n".join(result.lines) + "\n</testsuite>\n")
sys.exit(0 if result.wasSuccessful() else 1)
