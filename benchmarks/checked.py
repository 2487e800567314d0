"""What the checker writes and reads: tables of numbers that only grow, and every way to read them.

A *family* is a set of tables that one transaction changes together; in each, a row is a number that is incremented. So
whatever a read returns can be compared with what had been acknowledged: it may be newer, never older than promised.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FAMILIES", "KINDS", "LAST", "PATHS", "PEOPLE", "ROWS", "SCHEMA", "STOCK", "ZONES", "Kind", "writes"]

ROWS = 16
LAST = ROWS - 1
"""The row that is only read along with others."""
PEOPLE = ("ann", "ben", "cem")
ZONES = {"UTC": b"+00", "Asia/Kolkata": b"+05:30", "America/Lima": b"-05"}
PATHS = ("north", "south")
"""Schemas, for search paths."""
FAMILIES = ("counter", "parts", "moved", "replaced", "shown", "catalogue")
SCHEMA = FAMILIES.index("catalogue")

STOCK = f"""
CREATE TABLE counter (id int PRIMARY KEY, value int NOT NULL, at timestamptz DEFAULT '2024-01-01 00:00+00');
CREATE VIEW seen AS SELECT id, value FROM counter;
CREATE TABLE copy (id int, value int);
CREATE FUNCTION follow() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
  UPDATE copy SET value = NEW.value WHERE id = NEW.id; RETURN NULL; END$$;
CREATE TABLE parts (id int PRIMARY KEY, value int NOT NULL) PARTITION BY RANGE (id);
CREATE TABLE parts_low PARTITION OF parts FOR VALUES FROM (0) TO (7);
CREATE TABLE parts_high (value int NOT NULL, id int NOT NULL);
ALTER TABLE parts ATTACH PARTITION parts_high FOR VALUES FROM (7) TO (1000);
CREATE TABLE leader (number int PRIMARY KEY, row int);
CREATE TABLE moved (row int PRIMARY KEY, number int REFERENCES leader ON UPDATE CASCADE);
CREATE TABLE owner (id int PRIMARY KEY);
CREATE TABLE replaced (owner int REFERENCES owner ON DELETE CASCADE, value int);
CREATE TABLE shown (value int, row int, tag text);
ALTER TABLE shown REPLICA IDENTITY FULL;
CREATE TABLE odd (id int PRIMARY KEY, value int); CREATE TABLE even (id int PRIMARY KEY, value int);
ALTER TABLE odd RENAME TO swapped;
INSERT INTO counter SELECT i, 0 FROM generate_series(0, {ROWS - 1}) i;
INSERT INTO copy SELECT id, 0 FROM counter; INSERT INTO parts SELECT id, 0 FROM counter;
INSERT INTO leader SELECT id, id FROM counter; INSERT INTO moved SELECT id, id FROM counter;
INSERT INTO owner SELECT id FROM counter; INSERT INTO replaced SELECT id, 0 FROM counter;
INSERT INTO shown SELECT 0, id, 'tag ' || id FROM counter;
INSERT INTO swapped VALUES (0, 0); INSERT INTO even VALUES (0, 0);
CREATE TRIGGER follow AFTER UPDATE ON counter FOR EACH ROW EXECUTE FUNCTION follow();
CREATE VIEW shaped AS SELECT 0 AS shape, count(*) AS n FROM owner;
CREATE TABLE secret (slot int, holder name); ALTER TABLE secret ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON secret USING (holder = current_user);
""" + "".join(
    f"CREATE ROLE {name} LOGIN; INSERT INTO secret SELECT i, '{name}' FROM generate_series(0, 3) i;\n"
    for name in PEOPLE
) + "".join(
    f"CREATE SCHEMA {path}; GRANT USAGE ON SCHEMA {path} TO public;\n"
    f"CREATE TABLE {path}.placed AS SELECT '{path}' AS place; GRANT SELECT ON {path}.placed TO public;\n"
    for path in PATHS
) + f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {', '.join(PEOPLE)};"  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kind:
    """``sql`` reads with ``$1`` a row of a family, and ``also`` adds another. ``scale`` and ``wanted``: what the
    number is multiplied by, and what the second column must be: the session's zone, role or path. ``broad``: it depends
    on whole tables, so it is asked for few rows, or it would be a miss all the time.
    """

    name: str
    family: int
    sql: str
    broad: bool = False
    every: bool = False
    also: int = -1
    scale: int = 1
    wanted: str = ""

    @property
    def one(self) -> bool:
        """Is there only one row to read?"""
        return "$1" not in self.sql

    @property
    def single(self) -> bool:
        """Does it show the number of one row, and nothing else?"""
        return not self.every and self.also < 0 and not self.wanted

    @property
    def timeless(self) -> bool:
        """Is its number always the same, because only the second column matters?"""
        return self.wanted in ("name", "path")

    def text(self, row: int) -> str:
        return self.sql.replace("$1", str(row))

    def second(self, person: str, zone: str, path: str) -> bytes | None:
        """What stands at the end of the second column."""
        return {"zone": ZONES[zone], "name": person.encode(), "path": path.encode()}.get(self.wanted)


KINDS = (
    Kind("by key", 0, "SELECT value FROM counter WHERE id = $1"),
    Kind("by key, in a zone", 0, "SELECT value, at FROM counter WHERE id = $1", wanted="zone"),
    Kind("through a view", 0, "SELECT value FROM seen WHERE id = $1", broad=True),
    Kind("by a trigger, no key", 0, "SELECT value FROM copy WHERE id = $1", broad=True),
    Kind("some rows", 0, f"SELECT sum(value) FROM counter WHERE id IN ($1, {LAST})", also=LAST),
    Kind("listed rows", 0, "SELECT sum(value) FROM counter WHERE id = ANY ('{$1}')"),
    Kind("all rows", 0, "SELECT sum(value) FROM counter", every=True),
    Kind("joined", 0, "SELECT least(c.value, o.value) FROM counter c JOIN copy o USING (id) WHERE id = $1", broad=True),
    Kind("of a partition's root", 1, "SELECT value FROM parts WHERE id = $1"),
    Kind("of all partitions", 1, "SELECT sum(value) FROM parts", every=True),
    Kind("by a cascade", 2, "SELECT number FROM moved WHERE row = $1", scale=1000),
    Kind("by a deleting cascade", 3, "SELECT value FROM replaced WHERE owner = $1"),
    Kind("by any column", 4, "SELECT value FROM shown WHERE row = $1"),
    Kind("by a text", 4, "SELECT value FROM shown WHERE tag = 'tag $1'"),
    Kind("own rows", 0, "SELECT 2147483647, holder FROM secret WHERE slot = $1 % 4", wanted="name"),
    Kind("by the path", 0, "SELECT 2147483647, place FROM placed", wanted="path"),
    Kind("a view made anew", SCHEMA, "SELECT shape FROM shaped"),
    Kind("swapped by names", SCHEMA, "SELECT value FROM swapped WHERE id = 0"),
)


def writes(family: int, row: int, value: int) -> list[str]:
    """One transaction that gives ``row`` of ``family`` this number; the number before was one less."""
    name = FAMILIES[family]
    if family == SCHEMA:
        return [
            f"CREATE OR REPLACE VIEW shaped AS SELECT {value} AS shape, count(*) AS n FROM owner",
            f"UPDATE even SET value = {value}",
            "ALTER TABLE swapped RENAME TO old; ALTER TABLE even RENAME TO swapped; ALTER TABLE old RENAME TO even",
        ]
    if name == "moved":
        return [f"UPDATE leader SET number = number + 1000 WHERE row = {row}"]
    if name == "replaced":
        return [
            f"DELETE FROM owner WHERE id = {row}",
            f"INSERT INTO owner VALUES ({row})",
            f"INSERT INTO replaced VALUES ({row}, {value})",
        ]
    column = {"shown": "row"}.get(name, "id")
    return [f"UPDATE {name} SET value = {value} WHERE {column} = {row}"]
