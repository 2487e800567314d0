"""What the stories ask of the shop: the SQL, and how an answer reads in one line.

Texts and parameters are those of an ordinary application; nothing in them knows of a cache. The dashboard's windows are
literal dates, as a reporting tool writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, LiteralString

from distribcache.cli.demonstration.dataset import CUSTOMERS, LAST_DAY, ORDERS, PRODUCTS

__all__ = ["BUYER", "COUNT_STOCK", "LATEST_ORDER", "ORDER", "ORDER_LINES", "PANELS", "POINTS", "STOCK", "WATCHED"]

Rows = Sequence[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Point:
    """A read by key. ``keys`` ids up to ``most`` are asked for, the first far more often than the last."""

    sql: LiteralString
    most: int
    keys: int

    def key(self, number: int) -> int:
        """The key of the ``number``-th read: always the same sequence, as skewed as Zipf's law."""
        # Multiples of the golden ratio lie evenly between 0 and 1.
        rank = int(self.keys ** (number * 0.6180339887498949 % 1.0))
        return 1 + rank * 7919 % self.most


@dataclass(frozen=True, slots=True)
class Question:
    """One figure of the dashboard. ``say`` turns its rows into one line."""

    title: str
    sql: LiteralString
    say: Callable[[Rows], str]


POINTS = (
    Point(
        "SELECT p.sku, p.name, p.brand, c.name, p.price FROM products AS p "
        "JOIN categories AS c ON c.id = p.category_id WHERE p.id = %s",
        PRODUCTS, 120,
    ),
    Point("SELECT name, email, city, country, joined FROM customers WHERE id = %s", CUSTOMERS, 80),
    Point("SELECT customer_id, ordered_at, channel, status FROM orders WHERE id = %s", ORDERS, 60),
)  # fmt: skip

MONTH: LiteralString = "'2026-10-01'"
QUARTER: LiteralString = "'2026-08-01'"
HALF_YEAR: LiteralString = "'2026-05-01'"

_LINES: LiteralString = "orders AS o JOIN order_lines AS l ON l.order_id = o.id"

PANELS = (
    Question(
        "Sales this month",
        "SELECT count(*), sum(total), round(avg(total), 2) FROM (SELECT sum(l.quantity * l.unit_price) AS total "
        f"FROM {_LINES} WHERE o.ordered_at >= {MONTH} GROUP BY o.id) AS baskets",
        lambda rows: f"{rows[0][0]:,} orders, {_money(rows[0][1])}, basket {rows[0][2]:,.2f}",
    ),
    Question(
        "Revenue by month",
        "SELECT date_trunc('month', o.ordered_at) AS month, sum(l.quantity * l.unit_price) AS revenue "
        f"FROM {_LINES} WHERE o.ordered_at >= {QUARTER} GROUP BY month ORDER BY month",
        lambda rows: ", ".join(f"{row[0]:%b} {_money(row[1])}" for row in rows),
    ),
    Question(
        "Best seller",
        "SELECT p.name, sum(l.quantity) AS sold, sum(l.quantity * l.unit_price) AS revenue "
        f"FROM {_LINES} JOIN products AS p ON p.id = l.product_id WHERE o.ordered_at >= {MONTH} "
        "GROUP BY p.id ORDER BY revenue DESC, p.id LIMIT 5",
        lambda rows: f"{rows[0][0]}, {rows[0][1]:,} sold, {_money(rows[0][2])}",
    ),
    Question(
        "Departments",
        "SELECT c.department, sum(l.quantity * l.unit_price) AS revenue "
        f"FROM {_LINES} JOIN products AS p ON p.id = l.product_id JOIN categories AS c ON c.id = p.category_id "
        f"WHERE o.ordered_at >= {MONTH} GROUP BY c.department ORDER BY revenue DESC, c.department",
        lambda rows: ", ".join(f"{row[0]} {_money(row[1])}" for row in rows[:3]),
    ),
    Question(
        "Buyers by country",
        "SELECT c.country, count(DISTINCT c.id) AS buyers FROM orders AS o JOIN customers AS c ON c.id = o.customer_id "
        f"WHERE o.ordered_at >= {QUARTER} GROUP BY c.country ORDER BY buyers DESC, c.country LIMIT 8",
        lambda rows: ", ".join(f"{row[0]} {row[1]:,}" for row in rows[:3]),
    ),
    Question(
        "Returning customers",
        "SELECT count(*) FILTER (WHERE orders > 1), count(*) FROM (SELECT customer_id, count(*) AS orders "
        f"FROM orders WHERE ordered_at >= {HALF_YEAR} GROUP BY customer_id) AS buyers",
        lambda rows: f"{100 * rows[0][0] / rows[0][1]:.1f} % of {rows[0][1]:,} ordered again within six months",
    ),
    Question(
        "If you liked those",
        "WITH best AS MATERIALIZED (SELECT p.id, p.embedding, sum(l.quantity) AS sold "
        f"FROM {_LINES} JOIN products AS p ON p.id = l.product_id WHERE o.ordered_at >= {MONTH} "
        "GROUP BY p.id ORDER BY sold DESC, p.id LIMIT 10) "
        "SELECT n.name, min(n.distance) AS nearest FROM best, LATERAL (SELECT q.name, q.embedding <=> best.embedding "
        "AS distance FROM products AS q WHERE q.id <> best.id ORDER BY distance, q.id LIMIT 3) AS n "
        "GROUP BY n.name ORDER BY nearest, n.name LIMIT 3",
        lambda rows: ", ".join(row[0] for row in rows),
    ),
)

# What a warehouse counts, and what a customer sees of it.
WATCHED = tuple(1 + number * 1009 % PRODUCTS for number in range(1, 5))
STOCK: LiteralString = (
    "SELECT p.name, s.on_hand, s.counted FROM stock AS s JOIN products AS p ON p.id = s.product_id "
    "WHERE s.product_id = %s"
)
COUNT_STOCK: LiteralString = (
    "UPDATE stock SET on_hand = greatest(on_hand - 1, 0), counted = counted + 1 WHERE product_id = %s RETURNING on_hand"
)

# The outside writer also places orders, for one customer, who looks at the latest.
BUYER = 777
LATEST_ORDER: LiteralString = "SELECT id, ordered_at FROM orders WHERE customer_id = %s ORDER BY id DESC LIMIT 1"
ORDER: LiteralString = (
    "INSERT INTO orders SELECT nextval('order_number'), %s, "
    f"timestamp '{LAST_DAY} 23:00:00' + interval '1 second' * %s, 'app', 'open' RETURNING id"
)
ORDER_LINES: LiteralString = (
    "INSERT INTO order_lines SELECT %s, row_number() OVER (), id, 1, price FROM products WHERE id = ANY(%s)"
)


def _money(amount: Any) -> str:
    return f"{float(amount) / 1e6:.2f}M" if amount >= 1_000_000 else f"{float(amount) / 1e3:.0f}k"
