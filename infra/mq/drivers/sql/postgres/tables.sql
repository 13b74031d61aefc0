-- The queue's tables on PostgreSQL, as a database with all migrations has them. Tests compare both; the migrations
-- create the tables. `../sqlite/tables.sql` explains the tables and columns that both dialects have; the comments here
-- say what PostgreSQL has in addition. The functions are in `functions/`.
--
-- A change is a new migration in `infra/mq/drivers/sql/migrations/versions/`, and the same change here. A new column
-- comes last, because ALTER TABLE adds it there.
--
-- Names and keys are compared byte by byte (COLLATE "C"), so that all processes acquire locks in the same order. Tables
-- with many changes are vacuumed after a fixed number of dead rows, whatever their size, and without pauses.

CREATE SEQUENCE beneath_number;
CREATE SEQUENCE beneath_broadcast_number;

-- One row, of which `beneath_time_1` stores what it needs: the queue's time is the server's clock plus `ahead`, which
-- was reached at `since`.
CREATE TABLE beneath_clock (
    id integer PRIMARY KEY,
    ahead double precision NOT NULL,
    since double precision NOT NULL,
    seen double precision NOT NULL
) WITH (fillfactor = 10);

INSERT INTO beneath_clock VALUES (1, 0, 0, '-infinity');

CREATE TABLE beneath_subscription (
    id bigint PRIMARY KEY DEFAULT nextval('beneath_number'),
    name text COLLATE "C" NOT NULL UNIQUE,
    ordered integer NOT NULL,
    paused integer NOT NULL DEFAULT 0
);

CREATE TABLE beneath_route (
    event text COLLATE "C" NOT NULL,
    subscription bigint NOT NULL,
    PRIMARY KEY (event, subscription)
);

CREATE INDEX beneath_route_subscription ON beneath_route (subscription);

CREATE TABLE beneath_alias (
    name text COLLATE "C" PRIMARY KEY,
    subscription bigint NOT NULL
);

CREATE INDEX beneath_alias_subscription ON beneath_alias (subscription);

CREATE TABLE beneath_broadcast_event (
    event text PRIMARY KEY
);

CREATE TABLE beneath_registry (
    id integer PRIMARY KEY,
    version bigint NOT NULL,
    changed_at double precision NOT NULL,
    visible_version bigint NOT NULL DEFAULT 0,
    visible_at double precision NOT NULL DEFAULT 0
);

INSERT INTO beneath_registry (id, version, changed_at) VALUES (1, 0, 0);

CREATE TABLE beneath_retirement (
    subscription bigint NOT NULL,
    event text NOT NULL,
    backlog text NOT NULL,
    PRIMARY KEY (subscription, event)
);

CREATE TABLE beneath_delivery (
    id bigint PRIMARY KEY DEFAULT nextval('beneath_number'),
    subscription bigint NOT NULL,
    state integer NOT NULL,
    owner bigint,
    due_at double precision NOT NULL,
    published_at double precision NOT NULL,
    failures integer NOT NULL DEFAULT 0,
    deferrals integer NOT NULL DEFAULT 0,
    takeovers integer NOT NULL DEFAULT 0,
    crashes integer NOT NULL DEFAULT 0,
    isolated integer NOT NULL DEFAULT 0,
    message_id text COLLATE "C" NOT NULL,
    event text NOT NULL,
    ordering_key text,
    mailbox text COLLATE "C",
    last_error text,
    last_traceback text,
    body bytea NOT NULL,
    fence bigint NOT NULL DEFAULT 0,
    needs text
) WITH (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0
);

CREATE INDEX beneath_delivery_ready ON beneath_delivery (subscription, due_at, id, published_at, state)
    WHERE state = 0;
CREATE INDEX beneath_delivery_claimed ON beneath_delivery (owner, subscription, published_at, state)
    WHERE state = 1;
CREATE INDEX beneath_delivery_parked
    ON beneath_delivery (subscription, coalesce(needs, event), id, published_at, state) WHERE state = 2;
CREATE INDEX beneath_delivery_scheduled ON beneath_delivery (due_at, id, subscription, published_at, state)
    WHERE state = 3;
CREATE INDEX beneath_delivery_scheduled_subscription ON beneath_delivery (subscription, id) WHERE state = 3;
CREATE INDEX beneath_delivery_mailbox ON beneath_delivery (subscription, mailbox, id, published_at, state)
    WHERE state = 4;

-- A large body is stored outside of its row, and uncompressed.
ALTER TABLE beneath_delivery ALTER COLUMN body SET STORAGE EXTERNAL;

-- Each of these is the only index that its statement can use, because of how both write the state: for an empty table
-- the planner considers all other indexes equally good.
CREATE INDEX beneath_delivery_due_message ON beneath_delivery (message_id) WHERE state + 0 = 3;
CREATE INDEX beneath_delivery_due_mailbox ON beneath_delivery (mailbox, due_at, id)
    WHERE state - 3 = 0 AND mailbox IS NOT NULL;

CREATE TABLE beneath_mailbox (
    subscription bigint NOT NULL,
    ordering_key text COLLATE "C" NOT NULL,
    state integer NOT NULL,
    due_at double precision NOT NULL,
    turn bigint NOT NULL,
    fence bigint NOT NULL DEFAULT 0,
    owner bigint,
    last_id bigint,
    parked_event text,
    -- No delivery in the mailbox has a lower number. A search for the head begins here, and so skips handled deliveries
    -- that stay in the index while an old transaction is open.
    first_id bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (subscription, ordering_key)
) WITH (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0
);

CREATE INDEX beneath_mailbox_ready ON beneath_mailbox (subscription, due_at, turn) WHERE state = 0;
CREATE INDEX beneath_mailbox_claimed ON beneath_mailbox (owner) WHERE state = 1;
CREATE INDEX beneath_mailbox_parked ON beneath_mailbox (subscription, parked_event) WHERE state = 2;
CREATE INDEX beneath_mailbox_blocked ON beneath_mailbox (subscription) WHERE state = 3;

CREATE TABLE beneath_dead_letter (
    id bigint PRIMARY KEY DEFAULT nextval('beneath_number'),
    subscription text NOT NULL,
    message_id text NOT NULL,
    event text NOT NULL,
    ordering_key text,
    error text NOT NULL,
    traceback text NOT NULL,
    failures integer NOT NULL,
    crashes integer NOT NULL,
    published_at double precision NOT NULL,
    died_at double precision NOT NULL,
    body bytea NOT NULL
);

CREATE INDEX beneath_dead_letter_subscription ON beneath_dead_letter (subscription, id);
CREATE INDEX beneath_dead_letter_event ON beneath_dead_letter (event, id);

CREATE TABLE beneath_worker (
    id bigint PRIMARY KEY DEFAULT nextval('beneath_number'),
    name text NOT NULL UNIQUE,
    host text NOT NULL,
    pid integer NOT NULL,
    subscriptions text NOT NULL,
    joined_at double precision NOT NULL,
    lease_until double precision NOT NULL DEFAULT 0,
    epoch bigint NOT NULL DEFAULT 0 -- a claim that states an earlier epoch is void
) WITH (fillfactor = 50);

CREATE TABLE beneath_accepted (
    event text COLLATE "C" NOT NULL,
    id text COLLATE "C" NOT NULL,
    at double precision NOT NULL,
    PRIMARY KEY (event, id)
) WITH (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0
);

CREATE INDEX beneath_accepted_at ON beneath_accepted (at);

CREATE TABLE beneath_dedupe (
    id text COLLATE "C" PRIMARY KEY,
    at double precision NOT NULL
) WITH (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0
);

CREATE INDEX beneath_dedupe_at ON beneath_dedupe (at);

CREATE TABLE beneath_broadcast (
    id bigint PRIMARY KEY DEFAULT nextval('beneath_broadcast_number'),
    origin text NOT NULL,
    at double precision NOT NULL,
    frame bytea NOT NULL
) WITH (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0
);

CREATE INDEX beneath_broadcast_at ON beneath_broadcast (at);

-- One row with the number of the last broadcast; broadcasts are numbered in the order of commits.
CREATE TABLE beneath_broadcast_last (
    id integer PRIMARY KEY,
    number bigint NOT NULL
) WITH (fillfactor = 10);

INSERT INTO beneath_broadcast_last VALUES (1, 0);
