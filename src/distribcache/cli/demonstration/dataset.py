"""The shop: 24 categories, 4,800 products, 50,000 customers, 400,000 orders with 1,200,000 lines, and their stock.

Rules:
1. Rows are made on the server with ``generate_series``: sending them would take longer than making them.
2. The same rows every time. Each statement starts from its own ``setseed`` and runs in one process; dates are fixed.
3. It looks like a shop: names that people would read, popular and unpopular products, growth and seasons, prices with
   an end of .90, products of one kind near each other in the space of embeddings.
4. What a careful owner would have: primary and foreign keys, indexes for the questions that are asked, VACUUM, ANALYZE,
   memory for the whole shop. PostgreSQL must be at its best where it is compared.
5. Two lanes fill at once, one per order and one per product: most machines have two cores.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from distribcache.cli.postgres import Postgres

__all__ = [
    "CUSTOMERS", "DATABASE", "LAST_DAY", "ORDERS", "PRODUCTS", "SERVER_OPTIONS", "Size", "Step", "create", "size",
]

DATABASE = "shop"
CATEGORIES = 24
PRODUCTS = 4_800
CUSTOMERS = 50_000
ORDERS = 400_000
DIMENSIONS = 64
# The day on which the shop is looked at: orders stop here.
LAST_DAY = "2026-10-31"

SERVER_OPTIONS = {
    "shared_buffers": "512MB", "work_mem": "64MB", "maintenance_work_mem": "256MB", "max_wal_size": "4GB",
    "random_page_cost": "1.1",
}

# Department, category, lowest and highest price, eight things that are sold.
_CATALOGUE: tuple[tuple[str, str, int, int, str], ...] = (
    ("Kitchen", "Cookware", 25, 240, "Saucepan,Skillet,Stockpot,Wok,Casserole,Griddle,Steamer,Roasting Tin"),
    ("Kitchen", "Knives", 15, 180, "Chef Knife,Bread Knife,Paring Knife,Cleaver,Honing Steel,Santoku,Shears,Board"),
    ("Kitchen", "Coffee and Tea", 9, 320, "Kettle,French Press,Grinder,Teapot,Moka Pot,Dripper,Milk Jug,Scale"),
    ("Kitchen", "Tableware", 6, 90, "Dinner Plate,Bowl,Mug,Carafe,Serving Dish,Napkin Set,Cutlery Set,Tumbler"),
    ("Home", "Lighting", 18, 310, "Desk Lamp,Floor Lamp,Pendant,Lantern,Sconce,Night Light,Reading Lamp,String Lights"),
    ("Home", "Bedding", 20, 260, "Duvet,Pillow,Linen Sheet,Blanket,Quilt,Throw,Mattress Topper,Bolster"),
    ("Home", "Bath", 8, 85, "Towel,Bath Mat,Robe,Soap Dish,Shower Curtain,Mirror,Basket,Sponge Set"),
    ("Home", "Storage", 10, 220, "Shelf,Crate,Coat Rack,Shoe Bench,Drawer Box,Bookcase,Hamper,Wall Hook"),
    ("Outdoors", "Camping", 12, 420, "Tent,Sleeping Bag,Stove,Headlamp,Cooler,Camp Chair,Hammock,Water Filter"),
    ("Outdoors", "Cycling", 10, 290, "Helmet,Bike Light,Pannier,Track Pump,Saddle,Lock,Multi-Tool,Bottle Cage"),
    ("Outdoors", "Climbing", 9, 210, "Rope,Harness,Chalk Bag,Carabiner,Belay Device,Quickdraw,Sling,Crash Pad"),
    ("Outdoors", "Running", 14, 190, "Trail Shoe,Road Shoe,Vest,Shorts,Jacket,Cap,Hydration Belt,Socks"),
    ("Garden", "Hand Tools", 7, 95, "Trowel,Pruner,Rake,Spade,Hoe,Watering Can,Fork,Dibber"),
    ("Garden", "Planters", 9, 160, "Planter,Hanging Basket,Trough,Pot,Window Box,Raised Bed,Saucer,Plant Stand"),
    ("Garden", "Barbecue", 15, 480, "Charcoal Grill,Gas Grill,Smoker,Fire Pit,Tongs,Cover,Pizza Stone,Skewers"),
    ("Garden", "Furniture", 35, 590, "Bench,Lounger,Bistro Table,Folding Chair,Parasol,Swing Seat,Side Table,Stool"),
    ("Office", "Stationery", 3, 60, "Notebook,Fountain Pen,Planner,Pencil Set,Folder,Stapler,Desk Pad,Card Box"),
    ("Office", "Desks", 20, 640, "Standing Desk,Monitor Arm,Footrest,Cable Tray,Task Chair,Drawer Unit,Riser,Screen"),
    ("Office", "Bags", 25, 230, "Backpack,Messenger Bag,Tote,Laptop Sleeve,Duffel,Satchel,Wallet,Travel Kit"),
    ("Office", "Audio", 19, 380, "Headphones,Speaker,Microphone,Earbuds,Turntable,Amplifier,Radio,Sound Bar"),
    ("Play", "Board Games", 12, 95, "Strategy Game,Card Game,Chess Set,Domino Set,Dice Tower,Go Board,Quiz,Party Game"),
    ("Play", "Puzzles", 9, 70, "Jigsaw,Wooden Puzzle,Puzzle Box,Map Puzzle,Cube,Tangram,Marble Run,Brain Teaser"),
    ("Play", "Craft", 6, 120, "Loom,Watercolour Set,Sketchbook,Clay Kit,Knitting Set,Easel,Sewing Box,Brush Set"),
    ("Play", "Instruments", 15, 520, "Ukulele,Kalimba,Hand Drum,Melodica,Flute,Guitar,Keyboard,Harmonica"),
)  # fmt: skip

_SERIES = (
    "Alder,Birch,Cobalt,Dune,Ember,Fjord,Granite,Harbor,Indigo,Juniper,Kestrel,Linden,Meadow,Nordic,Opal,Pine,Quartz,"
    "Ridge,Saffron,Tidal,Umber,Vesper,Willow,Yarrow,Zephyr"
)
_BRANDS = "Northfold,Casa Lume,Hearth & Pine,Oakline,Studio Marek,Velo Nord,Bramble,Atelier Sol,Kinfield,Tern"
_FIRST_NAMES = (
    "Ada,Amir,Anna,Aya,Ben,Bruno,Carla,Chen,Clara,Dario,Diego,Elena,Emil,Emma,Fatima,Felix,Freya,Giulia,Hana,Hugo,"
    "Ida,Imani,Ines,Ivan,Jonas,Julia,Kai,Kofi,Laila,Lars,Lea,Leo,Lina,Luca,Maja,Malik,Marta,Mateo,Mei,Mila,Mina,Nadia,"
    "Nils,Nora,Olga,Omar,Oskar,Paula,Pedro,Priya,Rafael,Ravi,Rosa,Sana,Sara,Selma,Sofia,Tariq,Theo,Tomas,Vera,Yara,"
    "Yuki,Zoe"
)
_LAST_NAMES = (
    "Abebe,Almeida,Andersen,Bakker,Bauer,Becker,Bianchi,Costa,Dubois,Eriksen,Fernandez,Fischer,Garcia,Gupta,Haddad,"
    "Hansen,Hoffmann,Horvat,Ito,Ivanov,Jansen,Kaya,Keller,Khan,Kim,Kovacs,Kowalski,Larsen,Laurent,Lehmann,Lind,Lopez,"
    "Marino,Martin,Mensah,Meyer,Moreau,Moreno,Nakamura,Novak,Nowak,Okafor,Olsen,Park,Petrov,Popescu,Ricci,Rossi,Santos,"
    "Sato,Schmidt,Silva,Singh,Smit,Tanaka,Torres,Vogel,Wagner,Weber,Wolf,Wong,Yilmaz,Zhang,Zimmer"
)
_CITIES = (
    "Berlin/Germany,Hamburg/Germany,Munich/Germany,Paris/France,Lyon/France,London/United Kingdom,"
    "Leeds/United Kingdom,Madrid/Spain,Valencia/Spain,Milan/Italy,Turin/Italy,Amsterdam/Netherlands,"
    "Utrecht/Netherlands,Vienna/Austria,Zurich/Switzerland,Oslo/Norway,Copenhagen/Denmark,Stockholm/Sweden,"
    "Warsaw/Poland,Prague/Czechia,Lisbon/Portugal,Athens/Greece,Dublin/Ireland,Helsinki/Finland"
)


@dataclass(frozen=True, slots=True)
class Step:
    """A few statements that take a while together, and what they make."""

    title: str
    statements: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Size:
    """What is in the shop, counted."""

    version: str
    products: int
    customers: int
    orders: int
    order_lines: int
    disk_bytes: int


def _words(text: str) -> str:
    return "string_to_array('" + text.replace("'", "''") + "', ',')"


def _catalogue() -> str:
    return ",\n".join(
        f"({number}, '{department}', '{name}', {low}, {high}, {_words(things)})"
        for number, (department, name, low, high, things) in enumerate(_CATALOGUE, 1)
    )


_TABLES = Step("tables", (
    "CREATE EXTENSION vector",
    "CREATE TABLE categories (id int PRIMARY KEY, department text NOT NULL, name text NOT NULL UNIQUE)",
    f"""CREATE TABLE products (
        id int PRIMARY KEY, sku text NOT NULL UNIQUE, name text NOT NULL,
        category_id int NOT NULL REFERENCES categories, brand text NOT NULL, price numeric(10, 2) NOT NULL,
        embedding vector({DIMENSIONS}) NOT NULL)""",
    "CREATE TABLE stock (product_id int PRIMARY KEY REFERENCES products, on_hand int NOT NULL, counted int NOT NULL)",
    """CREATE TABLE customers (
        id int PRIMARY KEY, name text NOT NULL, email text NOT NULL, city text NOT NULL, country text NOT NULL,
        joined date NOT NULL)""",
    """CREATE TABLE orders (
        id int NOT NULL, customer_id int NOT NULL, ordered_at timestamp NOT NULL, channel text NOT NULL,
        status text NOT NULL)""",
    """CREATE TABLE order_lines (
        order_id int NOT NULL, line smallint NOT NULL, product_id int NOT NULL, quantity smallint NOT NULL,
        unit_price numeric(10, 2) NOT NULL)""",
))  # fmt: skip

_PRODUCTS = Step(f"{PRODUCTS:,} products with embeddings", (
    f"""CREATE TEMPORARY TABLE catalogue AS
        SELECT * FROM (VALUES {_catalogue()}) AS c (id, department, name, low, high, things)""",
    "INSERT INTO categories SELECT id, department, name FROM catalogue",
    # Every thing of every category in every series: 24 x 8 x 25.
    f"""INSERT INTO products
        SELECT i, 'DC-' || lpad(i::text, 5, '0'),
               ({_words(_SERIES)})[1 + (i - 1) / 192] || ' ' || c.things[1 + (i - 1) / 24 % 8],
               c.id, ({_words(_BRANDS)})[1 + (c.id * 3 + (i - 1) / 192) % 10],
               floor(c.low + (c.high - c.low) * power(random(), 2))::numeric + 0.90,
               (SELECT array_agg(sin(c.id * k) + 0.4 * sin((i - 1) / 24 % 8 * 7.3 * k) + 0.2 * sin(i * 0.37 * k))
                FROM generate_series(1, {DIMENSIONS}) AS k)::real[]::vector
        FROM generate_series(1, {PRODUCTS}) AS i JOIN catalogue AS c ON c.id = 1 + (i - 1) % {CATEGORIES}""",
    "DROP TABLE catalogue",
    f"INSERT INTO stock SELECT i, 20 + (random() * 400)::int, 0 FROM generate_series(1, {PRODUCTS}) AS i",
))  # fmt: skip

_LINES = Step(f"{ORDERS * 3:,} order lines", (
    # One to five lines an order. A few products sell very well; 1009 spreads them over all categories.
    f"""INSERT INTO order_lines
        SELECT n.order_id, n.line, p.id, n.quantity, CASE WHEN n.sale THEN round(p.price * 0.85, 2) ELSE p.price END
        FROM (SELECT o AS order_id, l AS line,
                     1 + ({PRODUCTS} * power(random(), 2.5))::int * 1009 % {PRODUCTS} AS product_id,
                     1 + (2.4 * random() * random())::int AS quantity, random() < 0.15 AS sale
              FROM generate_series(1, {ORDERS}) AS o, generate_series(1, 1 + o * 3 % 5) AS l OFFSET 0) AS n
        JOIN products AS p ON p.id = n.product_id""",
    "ALTER TABLE order_lines ADD PRIMARY KEY (order_id, line)",
    "CREATE INDEX ON order_lines (product_id)",
))  # fmt: skip

_CUSTOMERS = Step(f"{CUSTOMERS:,} customers", (
    f"""INSERT INTO customers
        SELECT i, first || ' ' || last, lower(first || '.' || last) || i || '@example.com',
               split_part(place, '/', 1), split_part(place, '/', 2),
               date '2024-10-31' + (i * 730::bigint / {CUSTOMERS})::int
        FROM (SELECT i, ({_words(_FIRST_NAMES)})[1 + (64 * random())::int % 64] AS first,
                     ({_words(_LAST_NAMES)})[1 + (64 * random())::int % 64] AS last,
                     ({_words(_CITIES)})[1 + (24 * power(random(), 1.7))::int % 24] AS place
              FROM generate_series(1, {CUSTOMERS}) AS i OFFSET 0) AS people""",
))  # fmt: skip

_ORDERS = Step(f"{ORDERS:,} orders", (
    # Growth over two years with a season; most orders at noon; customers of long standing order more.
    f"""INSERT INTO orders
        SELECT i, 1 + ({CUSTOMERS} * power(random(), 1.4))::int % {CUSTOMERS},
               timestamp '2024-11-01'
                   + interval '1 day' * floor(730 * least(0.99999, power(x, 0.8) - 0.012 * sin(12.566 * x)))
                   + interval '1 second' * floor(28800 * (random() + random() + random())),
               (ARRAY['web', 'web', 'app', 'app', 'app', 'store', 'phone'])[1 + (7 * random())::int % 7],
               CASE WHEN i > {ORDERS} - 900 THEN 'open' WHEN random() < 0.03 THEN 'returned' ELSE 'shipped' END
        FROM (SELECT i, i / {ORDERS}::float8 AS x FROM generate_series(1, {ORDERS}) AS i) AS n""",
    "ALTER TABLE orders ADD PRIMARY KEY (id)",
    "CREATE INDEX ON orders (customer_id)",
    "CREATE INDEX ON orders (ordered_at)",
    f"CREATE SEQUENCE order_number OWNED BY orders.id START {ORDERS + 1}",
))  # fmt: skip

_KEYS = Step("foreign keys", (
    "ALTER TABLE orders ADD FOREIGN KEY (customer_id) REFERENCES customers",
    "ALTER TABLE order_lines ADD FOREIGN KEY (order_id) REFERENCES orders",
    "ALTER TABLE order_lines ADD FOREIGN KEY (product_id) REFERENCES products",
))  # fmt: skip

_STATISTICS = Step("statistics for the planner", ("VACUUM (ANALYZE, FREEZE)",))

# Stages one after the other; the lanes of a stage at once.
_STAGES: tuple[tuple[tuple[Step, ...], ...], ...] = (
    ((_TABLES,),),
    ((_PRODUCTS, _LINES), (_CUSTOMERS, _ORDERS)),
    ((_KEYS, _STATISTICS),),
)


def create(server: Postgres) -> Iterator[tuple[str, ...]]:
    """Make the database and fill it; yields the titles of what is being made, each time they change.

    Errors of PostgreSQL come through as psycopg's. Leaving early leaves the lanes to end with the server.
    """
    with psycopg.connect(server.conninfo(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {DATABASE}")
    for lanes in _STAGES:
        said: queue.SimpleQueue[tuple[int, Step | BaseException | None]] = queue.SimpleQueue()
        for number, steps in enumerate(lanes):
            threading.Thread(target=_fill, args=(server.conninfo(DATABASE), number, steps, said), daemon=True).start()
        doing: dict[int, str] = {}
        running = len(lanes)
        while running:
            number, step = said.get()
            if isinstance(step, BaseException):
                raise step
            doing.pop(number, None)
            if step is None:
                running -= 1
            else:
                doing[number] = step.title
            if doing:
                yield tuple(doing[lane] for lane in sorted(doing))


def _fill(
    conninfo: str, lane: int, steps: Sequence[Step], said: queue.SimpleQueue[tuple[int, Step | BaseException | None]]
) -> None:
    try:
        with psycopg.connect(conninfo, autocommit=True) as connection:
            for step in steps:
                said.put((lane, step))
                for statement in step.statements:
                    connection.execute("SELECT setseed(0.5)")
                    connection.execute(statement)
    except psycopg.Error as error:
        said.put((lane, error))
    else:
        said.put((lane, None))


def size(connection: psycopg.Connection[Any]) -> Size:
    """What there is, asked of PostgreSQL."""
    row = connection.execute(
        "SELECT split_part(current_setting('server_version'), ' ', 1), (SELECT count(*) FROM products), "
        "(SELECT count(*) FROM customers), (SELECT count(*) FROM orders), (SELECT count(*) FROM order_lines), "
        "pg_database_size(current_database())"
    ).fetchone()
    assert row is not None
    return Size(*row)
