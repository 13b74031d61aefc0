ALTER TABLE beneath_worker ADD COLUMN epoch bigint NOT NULL DEFAULT 0;

ALTER TABLE beneath_accepted ALTER COLUMN event TYPE text COLLATE "C", ALTER COLUMN id TYPE text COLLATE "C";
ALTER TABLE beneath_accepted SET (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, autovacuum_vacuum_cost_delay = 0
);

CREATE INDEX beneath_delivery_scheduled_subscription ON beneath_delivery (subscription, id) WHERE state = 3;
