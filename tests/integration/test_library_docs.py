"""Every example of the pages on the library runs, and prints what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from fix_library import Shop
from fix_proxy import MakeProxy

ROOT = Path(__file__).parents[2]
URL = "postgresql://app@db.example.com/shop"
PAGES = ["asyncpg", "psycopg", "sqlalchemy", "functions-and-entries"]
EXAMPLE = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", re.DOTALL)
PATIENT = {"DISTRIBCACHE_FRESHNESS_HIT_WAIT": "2s"}


def examples(page: Path) -> list[tuple[str, str]]:
    return EXAMPLE.findall(page.read_text("utf-8"))


def run(shop: Shop, program: str) -> str:
    """What it prints, in front of the test's database. It waits first: a cache that has just begun may look twice."""
    assert program.count("sleep") == 0
    text = program.replace(URL, shop.url)
    found = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=120, env={**os.environ, **PATIENT}
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


@pytest.mark.parametrize("page", PAGES)
def test_examples_print_what_the_page_says(shop: Shop, page: str) -> None:
    found = examples(ROOT / f"docs/how-to/{page}.md")
    assert found
    for program, expected in found:
        assert expected, "an example without its output"
        for _ in range(15):  # in its first second a cache may look at the catalogue again: a miss more
            shop.outside("UPDATE item SET name = 'item ' || id")
            printed = run(shop, program)
            if printed == expected:
                break
        assert printed == expected


def test_ten_lines_of_the_readme(shop: Shop) -> None:
    ((program, _),) = examples(ROOT / "README.md")
    assert run(shop, program).startswith("7575.0 [Row(name=")


def test_django_as_on_its_page(shop: Shop, make_proxy: MakeProxy) -> None:
    proxy = make_proxy(shop.url)
    settings, last = (program for program, _ in examples(ROOT / "docs/how-to/django-through-the-proxy.md"))
    settings = settings.replace('"6432"', f'"{proxy.port}"').replace('"shop"', f'"{shop.database.name}"')
    story = """
import time
Item.objects.create(id=900, name="rooibos")
for _ in range(3000):
    names = [item.name for item in Item.objects.filter(id__gte=900)]
    assert names == ["rooibos"]
    if last()["status"] == "hit":
        break
    time.sleep(0.02)
print(names, last()["status"])
Item.objects.filter(id=900).delete()
print(Item.objects.filter(id__gte=900).count())
"""
    model = """
from django.db import models

class Item(models.Model):
    name = models.TextField()

    class Meta:
        app_label = "page"
        db_table = "item"
"""
    program = f"import django\nfrom django.conf import settings\n{settings}\n"
    program += f"settings.configure(DATABASES=DATABASES)\ndjango.setup()\n{model}\n{last}\n{story}"
    with psycopg.connect(shop.conninfo(), autocommit=True) as connection:
        connection.execute("GRANT ALL ON item TO app")
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240)
    assert found.returncode == 0, found.stderr
    assert found.stdout == "['rooibos'] hit\n0\n"
