"""The classifier: shapes by hand, and whole statements as users write them."""

from __future__ import annotations

import pytest

from distribcache.query import WorkloadType
from distribcache.sql.cacheability import Shape
from distribcache.sql.parse import read
from distribcache.workload.classifier import RULES, classify, rule_for

SHAPES = [
    (Shape(vector_operator=True), "vector"),
    (Shape(vector_operator=True, aggregates=2, group_by=True, joins=5), "vector"),
    (Shape(vector_operator=True, point_lookup=True), "vector"),
    (Shape(point_lookup=True), "point"),
    (Shape(point_lookup=True, limit=1), "point"),
    (Shape(point_lookup=True, aggregates=1), "analytic"),
    (Shape(aggregates=1), "analytic"),
    (Shape(windows=1, limit=10), "analytic"),
    (Shape(group_by=True), "analytic"),
    (Shape(joins=3, limit=1), "analytic"),
    (Shape(), "simple"),
    (Shape(limit=100_000), "simple"),
    (Shape(joins=2, limit=1000), "simple"),
    (Shape(joins=1, limit=-1), "simple"),
    (Shape(joins=1, limit=0), "simple"),
    (Shape(joins=2, limit=1001), "other"),
    (Shape(joins=1), "other"),
    (Shape(joins=2), "other"),
]


@pytest.mark.parametrize(("shape", "rule"), SHAPES)
def test_shapes(shape: Shape, rule: str) -> None:
    assert rule_for(shape).name == rule
    assert classify(shape) is rule_for(shape).workload


def test_every_rule_decides_something() -> None:
    assert {name for _, name in SHAPES} == {rule.name for rule in RULES}


@pytest.mark.parametrize(
    ("sql", "workload"),
    [
        ("SELECT abalance FROM pgbench_accounts WHERE aid = 7", WorkloadType.OLTP),
        ("SELECT * FROM orders WHERE id = $1 LIMIT 21", WorkloadType.OLTP),
        ("SELECT * FROM orders ORDER BY placed DESC LIMIT 20", WorkloadType.OLTP),
        ("SELECT o.id, c.name FROM orders o JOIN customers c ON c.id = o.customer_id LIMIT $1", WorkloadType.OLTP),
        ("SELECT o.id, c.name FROM orders o JOIN customers c ON c.id = o.customer_id", WorkloadType.MIXED),
        ("SELECT count(*) FROM orders", WorkloadType.OLAP),
        ("SELECT region, sum(total) FROM orders GROUP BY region", WorkloadType.OLAP),
        ("SELECT region FROM orders GROUP BY region", WorkloadType.OLAP),
        ("SELECT id, rank() OVER (ORDER BY total) FROM orders", WorkloadType.OLAP),
        ("SELECT 1 FROM a JOIN b ON a.x = b.x JOIN c ON b.y = c.y JOIN d ON c.z = d.z", WorkloadType.OLAP),
        ("SELECT id FROM products ORDER BY embedding <-> '[1,2,3]' LIMIT 5", WorkloadType.VECTOR),
        ("SELECT id FROM products WHERE shop = 3 ORDER BY embedding <=> $1 LIMIT 5", WorkloadType.VECTOR),
    ],
)
def test_statements(sql: str, workload: WorkloadType) -> None:
    (statement,) = read(sql.encode()).statements
    assert classify(statement.shape) is workload
