-- The queue's tables on SQLite, as a database with all migrations has them. Tests compare both; the migrations create
-- the tables. Times are in seconds since the epoch.
--
-- A change is a new migration in `infra/mq/drivers/sql/migrations/versions/`, and the same change here. A new column
-- comes last, because ALTER TABLE adds it there.

-- The last number of each sequence, from which a transaction reserves a block. Numbers of deliveries, dead letters,
-- workers, turns and fences all come from `beneath_number`, which never restarts: with a reused fence or owner, a stale
-- worker would be considered the owner.
CREATE TABLE beneath_counter (
    name TEXT NOT NULL PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;

INSERT INTO beneath_counter VALUES ('beneath_number', 0), ('beneath_broadcast_number', 0);

-- The queue's time is a monotonic clock plus `ahead`, the same for all processes of one boot of the machine. `seen` is
-- a time that was reached; after a restart of the machine the queue's time is not earlier.
CREATE TABLE beneath_clock (
    boot TEXT NOT NULL PRIMARY KEY,
    ahead DOUBLE NOT NULL,
    seen DOUBLE NOT NULL
) WITHOUT ROWID;

CREATE TABLE beneath_subscription (
    id INTEGER NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    ordered INTEGER NOT NULL,
    paused INTEGER NOT NULL DEFAULT 0
);

-- The events of each subscription.
CREATE TABLE beneath_route (
    event TEXT NOT NULL,
    subscription INTEGER NOT NULL,
    PRIMARY KEY (event, subscription)
) WITHOUT ROWID;

CREATE INDEX beneath_route_subscription ON beneath_route (subscription);

-- Former names of subscriptions.
CREATE TABLE beneath_alias (
    name TEXT NOT NULL PRIMARY KEY,
    subscription INTEGER NOT NULL
) WITHOUT ROWID;

CREATE INDEX beneath_alias_subscription ON beneath_alias (subscription);

-- The events that have broadcast listeners.
CREATE TABLE beneath_broadcast_event (
    event TEXT NOT NULL PRIMARY KEY
) WITHOUT ROWID;

-- One row. `changed_at` is a time before COMMIT, which may be slow. After COMMIT the declaring process, or the next one
-- that reads the new version, stores in `visible_at` the time since which `visible_version` can be read.
CREATE TABLE beneath_registry (
    id INTEGER NOT NULL PRIMARY KEY,
    version INTEGER NOT NULL,
    changed_at DOUBLE NOT NULL,
    visible_version INTEGER NOT NULL DEFAULT 0,
    visible_at DOUBLE NOT NULL DEFAULT 0
);

INSERT INTO beneath_registry (id, version, changed_at) VALUES (1, 0, 0.0);

-- Retirements in progress: a row is inserted in the first step and deleted in the last one; a later call completes an
-- interrupted one.
CREATE TABLE beneath_retirement (
    subscription INTEGER NOT NULL,
    event TEXT NOT NULL, -- the retired event; the empty string: the whole subscription
    backlog TEXT NOT NULL,
    PRIMARY KEY (subscription, event)
) WITHOUT ROWID;

CREATE TABLE beneath_delivery (
    id INTEGER NOT NULL PRIMARY KEY,
    subscription INTEGER NOT NULL,
    state INTEGER NOT NULL, -- 0 ready, 1 claimed, 2 parked, 3 scheduled, 4 in a mailbox
    owner INTEGER,
    due_at DOUBLE NOT NULL,
    published_at DOUBLE NOT NULL,
    failures INTEGER NOT NULL DEFAULT 0,
    deferrals INTEGER NOT NULL DEFAULT 0,
    takeovers INTEGER NOT NULL DEFAULT 0,
    crashes INTEGER NOT NULL DEFAULT 0,
    isolated INTEGER NOT NULL DEFAULT 0,
    message_id TEXT NOT NULL,
    event TEXT NOT NULL,
    ordering_key TEXT,
    mailbox TEXT, -- the key of the delivery's mailbox, also before it is due; the empty string without an ordering key
    last_error TEXT,
    last_traceback TEXT,
    body BLOB NOT NULL,
    fence INTEGER NOT NULL DEFAULT 0, -- of an unordered delivery's present claim; grows with each claim
    needs TEXT -- what a worker must know to get a parked delivery; NULL: the event
);

-- Ordinary deliveries change only the indexes `_ready`, `_claimed` and `_mailbox`, and are in one of them at a time.
-- Indexes that `bus stats` counts end in `published_at` and `state`, so that it never reads the rows of a large
-- backlog: SQLite needs the state for that, although the index is restricted to one state.
CREATE INDEX beneath_delivery_ready ON beneath_delivery (subscription, due_at, id, published_at, state)
    WHERE state = 0;
CREATE INDEX beneath_delivery_claimed ON beneath_delivery (owner, subscription, published_at, state)
    WHERE state = 1;
CREATE INDEX beneath_delivery_parked
    ON beneath_delivery (subscription, coalesce(needs, event), id, published_at, state) WHERE state = 2;
CREATE INDEX beneath_delivery_scheduled ON beneath_delivery (subscription, due_at, id, published_at, state)
    WHERE state = 3;
CREATE INDEX beneath_delivery_scheduled_message ON beneath_delivery (message_id) WHERE state = 3;
CREATE INDEX beneath_delivery_scheduled_mailbox ON beneath_delivery (subscription, mailbox, due_at, id)
    WHERE state = 3 AND mailbox IS NOT NULL;
CREATE INDEX beneath_delivery_mailbox ON beneath_delivery (subscription, mailbox, id, published_at, state)
    WHERE state = 4;

CREATE TABLE beneath_mailbox (
    subscription INTEGER NOT NULL,
    ordering_key TEXT NOT NULL,
    state INTEGER NOT NULL, -- 0 ready, 1 claimed, 2 parked, 3 blocked
    due_at DOUBLE NOT NULL,
    turn INTEGER NOT NULL, -- of two mailboxes due at the same time, the one with the lower turn is claimed first
    fence INTEGER NOT NULL DEFAULT 0,
    owner INTEGER,
    last_id INTEGER, -- the last delivery of the present claim
    parked_event TEXT, -- what a worker must know to get a parked mailbox
    PRIMARY KEY (subscription, ordering_key)
) WITHOUT ROWID;

CREATE INDEX beneath_mailbox_ready ON beneath_mailbox (subscription, due_at, turn) WHERE state = 0;
CREATE INDEX beneath_mailbox_claimed ON beneath_mailbox (owner) WHERE state = 1;
CREATE INDEX beneath_mailbox_parked ON beneath_mailbox (subscription, parked_event) WHERE state = 2;
CREATE INDEX beneath_mailbox_blocked ON beneath_mailbox (subscription) WHERE state = 3;

CREATE TABLE beneath_dead_letter (
    id INTEGER NOT NULL PRIMARY KEY,
    subscription TEXT NOT NULL, -- its name, because dead letters stay when their subscription is retired
    message_id TEXT NOT NULL,
    event TEXT NOT NULL,
    ordering_key TEXT,
    error TEXT NOT NULL,
    traceback TEXT NOT NULL,
    failures INTEGER NOT NULL,
    crashes INTEGER NOT NULL,
    published_at DOUBLE NOT NULL,
    died_at DOUBLE NOT NULL,
    body BLOB NOT NULL
);

CREATE INDEX beneath_dead_letter_subscription ON beneath_dead_letter (subscription, id);
CREATE INDEX beneath_dead_letter_event ON beneath_dead_letter (event, id);

CREATE TABLE beneath_worker (
    id INTEGER NOT NULL PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    subscriptions TEXT NOT NULL,
    joined_at DOUBLE NOT NULL
);

-- The ids of accepted messages with `dedupe`, for the dedupe window.
CREATE TABLE beneath_accepted (
    event TEXT NOT NULL,
    id TEXT NOT NULL,
    at DOUBLE NOT NULL,
    PRIMARY KEY (event, id)
) WITHOUT ROWID;

CREATE INDEX beneath_accepted_at ON beneath_accepted (at);

-- The ids that the release before 0006 accepted; they count for every event.
CREATE TABLE beneath_dedupe (
    id TEXT NOT NULL PRIMARY KEY,
    at DOUBLE NOT NULL
) WITHOUT ROWID;

CREATE INDEX beneath_dedupe_at ON beneath_dedupe (at);

CREATE TABLE beneath_broadcast (
    id INTEGER NOT NULL PRIMARY KEY,
    origin TEXT NOT NULL,
    at DOUBLE NOT NULL,
    frame BLOB NOT NULL
);

CREATE INDEX beneath_broadcast_at ON beneath_broadcast (at);
