"""What two twin databases hold, for sessions that are played on both (``twin_play``).

``STOCK`` makes it, ``TIDY`` takes back what a run may have left in the database and in the roles.
"""

from __future__ import annotations

__all__ = ["STOCK", "TIDY"]

TIDY = """
DROP SCHEMA IF EXISTS public, other, early CASCADE;
DROP OWNED BY alice, bob, team CASCADE;
ALTER ROLE alice RESET ALL; ALTER ROLE bob RESET ALL; ALTER ROLE bob NOBYPASSRLS; ALTER ROLE alice NOBYPASSRLS;
REVOKE team FROM alice, bob; GRANT team TO alice;
CREATE SCHEMA public; GRANT ALL ON SCHEMA public TO public;
"""

STOCK = """
CREATE SCHEMA other; CREATE SCHEMA early;
GRANT USAGE, CREATE ON SCHEMA other, early TO team, bob;
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN money_ok AS numeric(8, 2) CHECK (VALUE >= 0);
CREATE TYPE two AS (a int, b text);
CREATE TABLE item (
  id int PRIMARY KEY, name text NOT NULL, cost money_ok, kind int, state mood DEFAULT 'ok', at timestamptz,
  raw bytea, ratio float8, span interval, due date, both_of two, tags text[]);
INSERT INTO item SELECT i, 'item ' || i, i * 1.5, i % 4, 'ok', timestamptz '2024-03-01 12:00+00' + i * interval '1 day',
  decode('00ff' || lpad(i::text, 2, '0'), 'hex'), 1 / i::float8, i * interval '25 hours', date '2024-02-29' + i,
  ROW(i, 'b' || i)::two, ARRAY['x' || i, NULL] FROM generate_series(1, 12) i;
CREATE TABLE other.item (id bigint PRIMARY KEY, name text, note text);
INSERT INTO other.item SELECT i, 'other ' || i, NULL FROM generate_series(1, 6) i;
CREATE TABLE part (
  item int REFERENCES item ON DELETE CASCADE ON UPDATE CASCADE, number int, note varchar(20), PRIMARY KEY (item, number)
);
INSERT INTO part SELECT i, j, 'part ' || j FROM generate_series(1, 6) i, generate_series(1, 3) j;
CREATE TABLE fact (id int, value int, PRIMARY KEY (id)) PARTITION BY RANGE (id);
CREATE TABLE fact_low PARTITION OF fact FOR VALUES FROM (0) TO (6);
CREATE TABLE fact_high (value int, id int NOT NULL);
ALTER TABLE fact ATTACH PARTITION fact_high FOR VALUES FROM (6) TO (100);
INSERT INTO fact SELECT i, i * 10 FROM generate_series(1, 10) i;
CREATE TABLE base (id int PRIMARY KEY, v int); CREATE TABLE derived (extra text) INHERITS (base);
INSERT INTO base SELECT i, i FROM generate_series(1, 4) i;
INSERT INTO derived SELECT i, i, 'd' FROM generate_series(3, 6) i;
CREATE TABLE doc (id int PRIMARY KEY, owner name, tenant text, body text);
INSERT INTO doc SELECT i, (ARRAY['alice', 'bob', 'team', 'postgres'])[1 + i % 4], 't' || i % 2, 'doc ' || i
  FROM generate_series(1, 12) i;
ALTER TABLE doc ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON doc USING (owner = current_user);
CREATE TABLE tenant_doc AS SELECT * FROM doc; ALTER TABLE tenant_doc ENABLE ROW LEVEL SECURITY;
CREATE POLICY of_tenant ON tenant_doc FOR SELECT USING (tenant = current_setting('app.tenant', true));
CREATE TABLE thin (id int PRIMARY KEY, name text, kind int, at timestamptz DEFAULT '2024-05-01 10:00+00');
INSERT INTO thin SELECT i, 'thin ' || i, i % 3 FROM generate_series(1, 12) i;
CREATE TABLE member (who name, tenant text, PRIMARY KEY (who, tenant));
INSERT INTO member VALUES ('alice', 't0'), ('bob', 't1'), ('postgres', 't1');
CREATE TABLE shared_doc AS SELECT * FROM doc; ALTER TABLE shared_doc ENABLE ROW LEVEL SECURITY;
CREATE POLICY of_member ON shared_doc
  USING (EXISTS (SELECT FROM member m WHERE m.who = current_user AND m.tenant = shared_doc.tenant));
CREATE TABLE log (id int, text text);
INSERT INTO log SELECT i, 'line ' || i FROM generate_series(1, 6) i;
CREATE TABLE audit (n serial, id int, what text);
CREATE UNLOGGED TABLE fast (id int PRIMARY KEY, v int);
INSERT INTO fast SELECT i, i FROM generate_series(1, 4) i;
CREATE SEQUENCE ticket;
CREATE TABLE long (id int PRIMARY KEY, n int, body text); ALTER TABLE long ALTER body SET STORAGE EXTERNAL;
INSERT INTO long SELECT i, i, repeat(i::text, 4000) FROM generate_series(1, 3) i;
CREATE TABLE odd (c char(4), n numeric, b bool, d date, u uuid, i8 bigint, i2 smallint);
INSERT INTO odd VALUES ('a', 1.50, true, '2024-02-29', '00000000-0000-0000-0000-00000000000a', 1, 1),
  ('b', 2, false, '2024-03-01', '00000000-0000-0000-0000-00000000000b', 2, 2);
CREATE TABLE made (id int PRIMARY KEY, n int, double int GENERATED ALWAYS AS (n * 2) STORED);
INSERT INTO made SELECT i, i % 3 FROM generate_series(1, 6) i;
CREATE TABLE deep (region text, id int, v int, PRIMARY KEY (region, id)) PARTITION BY LIST (region);
CREATE TABLE deep_a PARTITION OF deep FOR VALUES IN ('a', 'b') PARTITION BY RANGE (id);
CREATE TABLE deep_a1 PARTITION OF deep_a FOR VALUES FROM (0) TO (3);
CREATE TABLE deep_rest PARTITION OF deep_a DEFAULT; CREATE TABLE deep_z PARTITION OF deep DEFAULT;
INSERT INTO deep SELECT r, i, i FROM unnest(ARRAY['a', 'b', 'c']) r, generate_series(1, 4) i;
CREATE VIEW cheap AS SELECT * FROM item WHERE cost < 10;
CREATE VIEW totals AS SELECT kind, count(*) AS n, sum(cost) AS cost FROM item GROUP BY kind;
CREATE VIEW documents AS SELECT id, body FROM doc;
CREATE VIEW own_documents WITH (security_invoker) AS SELECT id, body FROM doc;
CREATE MATERIALIZED VIEW frozen AS SELECT kind, count(*) AS n FROM item GROUP BY kind;
CREATE FUNCTION twice(int) RETURNS int LANGUAGE sql IMMUTABLE RETURN $1 * 2;
CREATE FUNCTION of_kind(int) RETURNS SETOF int LANGUAGE sql STABLE
  BEGIN ATOMIC SELECT id FROM item WHERE kind = $1; END;
CREATE FUNCTION peek(int) RETURNS text LANGUAGE plpgsql STABLE AS
  'BEGIN RETURN (SELECT name FROM item WHERE id = $1); END';
CREATE FUNCTION secrets() RETURNS bigint LANGUAGE sql STABLE SECURITY DEFINER
  BEGIN ATOMIC SELECT count(*) FROM tenant_doc; END;
CREATE FUNCTION spend(int) RETURNS int LANGUAGE plpgsql AS
  'DECLARE k int; BEGIN UPDATE item SET kind = (kind + 1) % 4 WHERE id = $1 RETURNING kind INTO k; RETURN k; END';
CREATE FUNCTION zone(text) RETURNS text LANGUAGE plpgsql AS
  'BEGIN PERFORM set_config(''TimeZone'', $1, false); RETURN $1; END';
CREATE PROCEDURE become(text) LANGUAGE plpgsql AS 'BEGIN PERFORM set_config(''role'', $1, false); END';
CREATE FUNCTION followed() RETURNS trigger LANGUAGE plpgsql AS
  'BEGIN INSERT INTO audit (id, what) VALUES (NEW.id, TG_OP); RETURN NULL; END';
CREATE TRIGGER followed AFTER INSERT OR UPDATE ON fact FOR EACH ROW EXECUTE FUNCTION followed();
CREATE FUNCTION tuned() RETURNS trigger LANGUAGE plpgsql AS
  'BEGIN PERFORM set_config(''bytea_output'', NEW.text, false); RETURN NEW; END';
CREATE TRIGGER tuned BEFORE INSERT ON log FOR EACH ROW WHEN (NEW.id = 0) EXECUTE FUNCTION tuned();
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public, other TO team, bob;
REVOKE ALL ON long, totals FROM bob; REVOKE ALL ON odd, cheap FROM team;
GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO team, bob;
"""
