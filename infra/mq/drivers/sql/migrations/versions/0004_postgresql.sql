ALTER TABLE beneath_worker ADD COLUMN lease_until double precision NOT NULL DEFAULT 0;
ALTER TABLE beneath_worker SET (fillfactor = 50);

ALTER TABLE beneath_mailbox ADD COLUMN first_id bigint NOT NULL DEFAULT 0;

CREATE TABLE beneath_broadcast_last (
    id integer PRIMARY KEY,
    number bigint NOT NULL
) WITH (fillfactor = 10);
INSERT INTO beneath_broadcast_last VALUES (1, 0);

ALTER TABLE beneath_subscription ALTER COLUMN name TYPE text COLLATE "C";
ALTER TABLE beneath_alias ALTER COLUMN name TYPE text COLLATE "C";
ALTER TABLE beneath_route ALTER COLUMN event TYPE text COLLATE "C";
ALTER TABLE beneath_dedupe ALTER COLUMN id TYPE text COLLATE "C";
ALTER TABLE beneath_mailbox ALTER COLUMN ordering_key TYPE text COLLATE "C";
ALTER TABLE beneath_delivery
    ALTER COLUMN message_id TYPE text COLLATE "C",
    ALTER COLUMN mailbox TYPE text COLLATE "C",
    ALTER COLUMN body SET STORAGE EXTERNAL;

CREATE INDEX beneath_delivery_scheduled_mailbox ON beneath_delivery (mailbox, due_at, id)
    WHERE state = 3 AND mailbox IS NOT NULL;

ALTER TABLE beneath_delivery SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0
);
ALTER TABLE beneath_mailbox SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0
);
ALTER TABLE beneath_dedupe SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0
);
ALTER TABLE beneath_broadcast SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0
);
