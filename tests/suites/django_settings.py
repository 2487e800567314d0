"""Settings of Django's own test suite for one run, and a runner that leaves what every test gave in a JUnit file.

Copied beside ``runtests.py``. The port, the database and the report's path come by FOREIGN_PORT, FOREIGN_DATABASE and
FOREIGN_REPORT. Parameters are bound by the server, so that everything is the extended protocol of psycopg 3.
"""

from __future__ import annotations

import os
import unittest
import xml.etree.ElementTree as ET
from typing import Any

from django.test.runner import DiscoverRunner

_NAME = os.environ["FOREIGN_DATABASE"]
_DATABASE = {
    "ENGINE": "django.db.backends.postgresql", "HOST": "127.0.0.1", "PORT": os.environ["FOREIGN_PORT"],
    "USER": "postgres", "OPTIONS": {"server_side_binding": True},
}
DATABASES = {"default": {**_DATABASE, "NAME": _NAME}, "other": {**_DATABASE, "NAME": f"{_NAME}_other"}}
SECRET_KEY = "not a secret"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = False
TEST_RUNNER = "django_settings.Reporting"


class _Result(unittest.TextTestResult):
    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.seen: dict[str, str] = {}

    def stopTest(self, test: unittest.TestCase) -> None:
        self.seen.setdefault(test.id(), "passed")
        super().stopTest(test)


class Reporting(DiscoverRunner):  # type: ignore[misc]
    """Django's runner, with a report at its end. Making the databases counts as a test: migrations read what they
    wrote, and a stale answer ends everything there.
    """

    def get_resultclass(self) -> type[unittest.TextTestResult]:
        return _Result

    def setup_databases(self, **given: Any) -> Any:
        _report({"setup.databases": "error"})
        return super().setup_databases(**given)

    def suite_result(self, suite: Any, result: _Result, **more: Any) -> int:
        for status, found in (("skipped", result.skipped), ("failure", result.failures), ("error", result.errors)):
            for test, _ in found:
                # A subtest's own id has its parameters: the whole test has failed.
                name = getattr(test, "test_case", test).id()
                result.seen[name] = status
        result.seen |= {test.id(): "failure" for test in result.unexpectedSuccesses}
        _report(result.seen | {"setup.databases": "passed"})
        failed: int = super().suite_result(suite, result, **more)
        return failed


def _report(seen: dict[str, str]) -> None:
    root = ET.Element("testsuite")
    for name, status in seen.items():
        case = ET.SubElement(root, "testcase", classname=name.rpartition(".")[0], name=name.rpartition(".")[2])
        if status != "passed":
            ET.SubElement(case, status)
    ET.ElementTree(root).write(os.environ["FOREIGN_REPORT"])
